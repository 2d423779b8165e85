//! Plots of curves: panels side by side, one line per metric, over the steps of a run or over the
//! values of a setting.
//!
//! The label font is built into the binary, so that the image is the same on machines without
//! fonts.

use std::sync::Once;

use image::RgbImage;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::register_font;

use crate::error::{Context, Result};

const PANEL: (u32, u32) = (640, 420);
const FONT: &str = "sans-serif";

/// One metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    pub name: String,
    /// (x, value), sorted by x. Values that are not finite cannot be drawn and are left out; so are
    /// values ≤ 0 on a logarithmic axis.
    pub points: Vec<(f64, f64)>,
}

/// One coordinate system.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    pub title: String,
    /// A logarithmic y axis, for losses that fall by orders of magnitude; else linear from 0.
    pub log: bool,
    pub curves: Vec<Curve>,
}

/// The x axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Along<'a> {
    /// The steps of a run, from 0; the y axis starts at 0 too.
    Steps,
    /// Values of a setting that was varied: few points, each marked; both axes fit the points.
    Setting(&'a str),
}

/// Draws the panels from left to right.
pub fn draw(panels: &[Panel], along: Along) -> Result<RgbImage> {
    register();
    let (w, h) = (PANEL.0 * panels.len().max(1) as u32, PANEL.1);
    let mut pixels = vec![255u8; (w * h * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (w, h)).into_drawing_area();
        for (area, panel) in root
            .split_evenly((1, panels.len().max(1)))
            .iter()
            .zip(panels)
        {
            draw_panel(area, panel, along)
                .map_err(|e| anyhow::anyhow!("cannot draw `{}`: {e}", panel.title))?;
        }
        root.present().context("cannot draw the curves")?;
    }
    RgbImage::from_raw(w, h, pixels).context("the image's size does not match its pixels")
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

fn draw_panel(area: &Area, panel: &Panel, along: Along) -> std::result::Result<(), String> {
    let drawn: Vec<Vec<(f64, f64)>> = panel
        .curves
        .iter()
        .map(|curve| drawable(curve, panel.log))
        .collect();
    let all = || drawn.iter().flatten();
    let least = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(f64::INFINITY, f64::min);
    let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(0.0, f64::max);
    let (low, high) = (least(|p| p.1), most(|p| p.1));
    let (x, y) = match along {
        Along::Steps => (
            0.0..most(|p| p.0).max(1.0),
            low.min(0.0)..high.max(1e-3) * 1.05,
        ),
        Along::Setting(_) => (around(least(|p| p.0), most(|p| p.0)), around(low, high)),
    };
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(&panel.title, (FONT, 22))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48);
    if panel.log && high > 0.0 {
        let chart = builder.build_cartesian_2d(x, (low / 1.2..high * 1.2).log_scale());
        draw_curves(chart.map_err(text)?, panel, drawn, along)
    } else {
        let chart = builder.build_cartesian_2d(x, y);
        draw_curves(chart.map_err(text)?, panel, drawn, along)
    }
}

/// The range of the values with a margin.
fn around(low: f64, high: f64) -> std::ops::Range<f64> {
    if low > high {
        return 0.0..1.0; // no points
    }
    let more = match high - low {
        0.0 => 0.1 * high.abs().max(0.1),
        span => 0.1 * span,
    };
    low - more..high + more
}

fn draw_curves<'a, Y>(
    mut chart: ChartContext<'a, BitMapBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
    panel: &Panel,
    drawn: Vec<Vec<(f64, f64)>>,
    along: Along,
) -> std::result::Result<(), String>
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let log = panel.log;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_desc(match along {
            Along::Steps => "step",
            Along::Setting(name) => name,
        })
        .label_style((FONT, 14))
        .x_label_formatter(&|x| match along {
            Along::Steps => format!("{x:.0}"),
            Along::Setting(_) => y_label(*x, false),
        })
        .y_label_formatter(&|y| y_label(*y, log))
        .draw()
        .map_err(text)?;
    for (i, (curve, points)) in panel.curves.iter().zip(drawn).enumerate() {
        let style = Palette99::pick(i).stroke_width(2);
        if let Along::Setting(_) = along {
            let mark = |&point: &(f64, f64)| Circle::new(point, 4, style.filled());
            chart.draw_series(points.iter().map(mark)).map_err(text)?;
        }
        chart
            .draw_series(LineSeries::new(points, style))
            .map_err(text)?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    if matches!(along, Along::Setting(_)) && panel.curves.len() == 1 {
        // The title names the single curve, and its last point lies where the legend would be.
        return Ok(());
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font((FONT, 14))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A short number; on a logarithmic axis only for 1, 2 and 5 of each decade, because others would
/// overlap.
fn y_label(y: f64, log: bool) -> String {
    let mantissa = y / 10f64.powf(y.abs().max(1e-12).log10().floor());
    if log && ![1.0, 2.0, 5.0].iter().any(|m| (mantissa - m).abs() < 0.01) {
        return String::new();
    }
    let text = format!("{y:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn drawable(curve: &Curve, log: bool) -> Vec<(f64, f64)> {
    curve
        .points
        .iter()
        .copied()
        .filter(|p| p.1.is_finite() && (p.1 > 0.0 || !log))
        .collect()
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if the bytes are not a font, which the test below would show.
        let _ = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_of_every_panel_is_drawn_with_its_labels() -> Result<()> {
        let curve = |name: &str, f: fn(f64) -> f64| Curve {
            name: name.to_string(),
            points: (0..100).map(|i| (f64::from(i), f(f64::from(i)))).collect(),
        };
        let panels = [
            Panel {
                title: "tokenizer".to_string(),
                log: true,
                curves: vec![
                    curve("mse", |x| (-x / 30.0).exp()),
                    curve("quantization", |x| 0.2 + 1.0 / (x + 1.0)),
                ],
            },
            Panel {
                title: "generator".to_string(),
                log: false,
                curves: vec![curve("cross-entropy", |x| {
                    if x == 50.0 { f64::NAN } else { 6.0 - x / 50.0 }
                })],
            },
        ];
        let picture = draw(&panels, Along::Steps)?;
        assert_eq!(picture.dimensions(), (1280, 420));
        for (i, panel) in [0, 0, 1].into_iter().zip([0usize, 1, 0]) {
            let colour = Palette99::pick(panel).to_rgba().rgb();
            let found = picture
                .enumerate_pixels()
                .filter(|(x, _, p)| x / 640 == i && p.0 == [colour.0, colour.1, colour.2])
                .count();
            assert!(found > 100, "panel {i}, curve {panel}: {found} pixels");
        }
        // The letters of the title.
        let dark = (0..640).flat_map(|x| (12..34).map(move |y| (x, y)));
        assert!(
            dark.filter(|&(x, y)| picture.get_pixel(x, y).0[0] < 90)
                .count()
                > 50
        );
        if let Ok(path) = std::env::var("RDPM_TEST_PICTURE") {
            picture.save(path)?;
        }
        Ok(())
    }

    #[test]
    fn a_perfect_figure_is_drawn_and_one_that_is_not_finite_is_not() {
        let points = [
            (0.0, 0.0),
            (1.0, 2.0),
            (2.0, f64::NAN),
            (3.0, f64::INFINITY),
            (4.0, -1.0),
        ];
        let curve = Curve {
            name: "FID".to_string(),
            points: points.to_vec(),
        };
        assert_eq!(
            drawable(&curve, false),
            [(0.0, 0.0), (1.0, 2.0), (4.0, -1.0)]
        );
        assert_eq!(drawable(&curve, true), [(1.0, 2.0)]);
    }

    #[test]
    fn a_setting_needs_no_zero_and_one_point_is_enough() -> Result<()> {
        let panel = |points: &[(f64, f64)]| Panel {
            title: "FID".to_string(),
            log: false,
            curves: vec![Curve {
                name: "FID".to_string(),
                points: points.to_vec(),
            }],
        };
        let panels = [
            panel(&[(1.0, 8.1), (1.5, 7.9), (4.0, 8.4)]),
            panel(&[(2.0, 3.0)]),
            panel(&[]),
        ];
        let picture = draw(&panels, Along::Setting("guidance λ"))?;
        let colour = Palette99::pick(0).to_rgba().rgb();
        let rows: Vec<u32> = picture
            .enumerate_pixels()
            .filter(|(x, _, p)| *x < 560 && p.0 == [colour.0, colour.1, colour.2])
            .map(|(_, y, _)| y)
            .collect();
        let (top, bottom) = (rows.iter().min().unwrap(), rows.iter().max().unwrap());
        // On an axis from 0 the three values would differ by a tenth of the height.
        assert!(bottom - top > 150, "{top} to {bottom}");
        Ok(())
    }
}
