//! The plot of a sweep: each metric against the setting that was varied, one panel per metric.

use image::RgbImage;

use crate::error::Result;
use crate::telemetry::curves::{Along, Curve, Panel, draw};

/// A metric's values at each value of the setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The panel's title: `FID`, `Inception Score`.
    pub metric: String,
    /// (setting, value) in any order.
    pub points: Vec<(f64, f64)>,
}

/// Panels from left to right; `setting` is the label of the x axis (`guidance (--cfg)`).
pub fn plot(setting: &str, series: &[Series]) -> Result<RgbImage> {
    let panel = |series: &Series| {
        let mut points = series.points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Panel {
            title: series.metric.clone(),
            log: false,
            curves: vec![Curve {
                name: series.metric.clone(),
                points,
            }],
        }
    };
    let panels: Vec<Panel> = series.iter().map(panel).collect();
    draw(&panels, Along::Setting(setting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_panel_and_the_order_of_points_does_not_matter() -> Result<()> {
        let series = |metric: &str, points: &[(f64, f64)]| Series {
            metric: metric.to_string(),
            points: points.to_vec(),
        };
        let fid = [(1.0, 9.0), (2.0, 7.5), (4.0, 8.0)];
        let score = series("Inception Score", &[(1.0, 30.0), (2.0, 41.0), (4.0, 50.0)]);
        let sorted = plot("guidance", &[series("FID", &fid), score.clone()])?;
        let shuffled = plot(
            "guidance",
            &[series("FID", &[fid[2], fid[0], fid[1]]), score],
        )?;
        assert_eq!(sorted.dimensions(), (1280, 420));
        assert_eq!(sorted, shuffled);
        if let Ok(path) = std::env::var("RDPM_TEST_PICTURE") {
            sorted.save(path)?;
        }
        Ok(())
    }
}
