//! A chart as SVG: lines over steps or over t. `report.js` draws the same again where a reader
//! changes scales.

use std::fmt::Write;

use serde_json::{Value, json};

use super::html::{escape, number};

/// The size in units of its own, and what is left of the plot for labels.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 34.0;

/// Of a line of more points only the extremes of its pieces are drawn.
const MOST_POINTS: usize = 800;

/// The measures that the script needs too.
pub(super) fn layout() -> Value {
    json!({"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM})
}

/// A line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub name: String,
    /// The class of its colour.
    pub class: String,
    /// By rising x; none where the value was not finite.
    pub points: Vec<(f64, Option<f64>)>,
}

/// What a chart is of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    pub title: String,
    /// The name of the x axis.
    pub x: &'static str,
    pub series: Vec<Series>,
}

impl Chart {
    /// Whether its values are so far apart that a linear axis would show only the largest. A
    /// learning rate ends at nearly nothing by a schedule whose shape is what counts.
    pub fn is_log(&self) -> bool {
        let (low, high) = range(self.values());
        low > 0.0 && high / low > 30.0 && self.title != "lr"
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        let points = self.series.iter().flat_map(|series| &series.points);
        points.filter_map(|(_, y)| *y)
    }

    pub fn svg(&self) -> String {
        let log = self.is_log();
        let xs = self.series.iter().flat_map(|s| &s.points).map(|p| p.0);
        let (x_low, x_high) = widened(range(xs));
        let (y_low, y_high) = widened(range(self.values()));
        let of_y = |y: f64| if log { y.log10() } else { y };
        let (bottom, top) = (of_y(y_low), of_y(y_high));
        let place = |x: f64, y: f64| {
            // Within [0,1] but where the range is none that can be drawn.
            let share = |x: f64, low: f64, high: f64| ((x - low) / (high - low)).clamp(0.0, 1.0);
            let x = LEFT + share(x, x_low, x_high) * (WIDTH - LEFT - RIGHT);
            let share = share(of_y(y), bottom, top);
            (x, HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM))
        };
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.title)
        );
        for y in ticks(y_low, y_high, 5, log) {
            let (_, at) = place(x_low, y);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                tick(y)
            );
        }
        // Steps and t are whole.
        let is_whole = |x: &f64| (x - x.round()).abs() < 1e-9;
        for x in ticks(x_low, x_high, 6, false).into_iter().filter(is_whole) {
            let (at, _) = place(x, y_low);
            let _ = write!(
                out,
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM + 16.0,
                tick(x)
            );
        }
        let _ = write!(
            out,
            "<text class=\"axis\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 5.0,
            self.x
        );
        for series in &self.series {
            out.push_str(&line(series, log, place));
        }
        out.push_str("</svg>");
        out
    }
}

/// The path of a line, and marks where its values are not finite.
fn line(series: &Series, log: bool, place: impl Fn(f64, f64) -> (f64, f64)) -> String {
    let (mut path, mut marks) = (String::new(), String::new());
    let (mut is_on, mut alone) = (false, None);
    let dot = |(x, y): (f64, f64)| format!("M{x:.1} {y:.1}h0");
    for at in thinned(&series.points, MOST_POINTS) {
        let (x, y) = series.points[at];
        match y.filter(|y| *y > 0.0 || !log) {
            Some(y) => {
                let (x, y) = place(x, y);
                let _ = write!(path, "{}{x:.1} {y:.1}", if is_on { 'L' } else { 'M' });
                // A point between two gaps is no line.
                alone = if is_on { None } else { Some((x, y)) };
                is_on = true;
            }
            None => {
                path.push_str(&alone.take().map(dot).unwrap_or_default());
                is_on = false;
                if y.is_none() {
                    let (x, _) = place(x, 1.0);
                    let base = HEIGHT - BOTTOM;
                    let _ = write!(marks, "M{x:.1} {base}l-4 -7h8z");
                }
            }
        }
    }
    path.push_str(&alone.take().map(dot).unwrap_or_default());
    let marks = match marks.is_empty() {
        true => String::new(),
        false => format!("<path class=\"bad\" d=\"{marks}\"/>"),
    };
    format!(
        "<path class=\"line {}\" d=\"{path}\"><title>{}</title></path>{marks}",
        series.class,
        escape(&series.name)
    )
}

/// The places of at most about `most` points: the lowest and the highest of each piece, and its
/// first gap.
pub(super) fn thinned(points: &[(f64, Option<f64>)], most: usize) -> Vec<usize> {
    if points.len() <= most {
        return (0..points.len()).collect();
    }
    let length = points.len().div_ceil((most / 3).max(1));
    let mut kept = Vec::new();
    for begin in (0..points.len()).step_by(length) {
        let piece = begin..(begin + length).min(points.len());
        let finite = || piece.clone().filter(|at| points[*at].1.is_some());
        let value = |at: &usize| points[*at].1.unwrap_or(0.0);
        let by_value = |a: &usize, b: &usize| value(a).total_cmp(&value(b));
        let gap = piece.clone().find(|at| points[*at].1.is_none());
        let mut chosen: Vec<usize> = [finite().min_by(by_value), finite().max_by(by_value), gap]
            .into_iter()
            .flatten()
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        kept.extend(chosen);
    }
    kept
}

/// The lowest and the highest; NaN if there is none.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::NAN, f64::NAN), |(low, high), x| {
        (low.min(x), high.max(x))
    })
}

/// A range that a line can be drawn in; [0,1] where these values have none.
fn widened((low, high): (f64, f64)) -> (f64, f64) {
    let (low, high) = match high > low {
        true => (low, high),
        false => {
            let more = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low - more, high + more)
        }
    };
    match (high - low).is_normal() {
        true => (low, high),
        false => (0.0, 1.0),
    }
}

/// About `count` round numbers from `low` to `high`.
fn ticks(low: f64, high: f64, count: usize, log: bool) -> Vec<f64> {
    if log {
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let each = |mantissas: &'static [f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|decade| {
                let power = 10f64.powi(decade);
                mantissas.iter().map(move |mantissa| mantissa * power)
            });
            all.filter(|x| (low..=high).contains(x)).collect()
        };
        let fine = each(&[1.0, 2.0, 5.0]);
        let chosen = if fine.len() <= count + 3 {
            fine
        } else {
            each(&[1.0])
        };
        let every = chosen.len().div_ceil(count + 3).max(1);
        // Within a decade there are too few of them.
        if chosen.len() > 2 {
            return chosen.into_iter().step_by(every).collect();
        }
    }
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|mantissa| mantissa * power);
    let step = steps.into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last.min(first + 50))
        .map(|i| i as f64 * step)
        .collect()
}

fn tick(x: f64) -> String {
    match x.abs() {
        size if size >= 1e6 => format!("{}M", number(x / 1e6)),
        size if size >= 1e3 => format!("{}k", number(x / 1e3)),
        size if size > 0.0 && size < 1e-3 => format!("{x:.0e}"),
        _ => number(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, Option<f64>)>) -> Chart {
        let series = Series {
            name: "a <b>".to_string(),
            class: "c0".to_string(),
            points,
        };
        Chart {
            title: "loss".to_string(),
            x: "step",
            series: vec![series],
        }
    }

    #[test]
    fn every_figure_of_a_chart_is_a_number() {
        for points in [
            vec![],
            vec![(1.0, None)],
            vec![(5.0, Some(0.0))],
            vec![(5.0, Some(2.0)), (6.0, None), (7.0, Some(2.0))],
            vec![(0.0, Some(1e-30)), (1.0, Some(1e30))],
            vec![(0.0, Some(-1e300)), (1e15, Some(1e300))],
            vec![(0.0, Some(-1.7e308)), (1.0, Some(1.7e308))],
            vec![(0.0, Some(1.7e308))],
            vec![(0.0, Some(5e-324))],
            vec![(0.0, Some(0.0)), (1.0, Some(5e-324))],
            vec![(0.0, Some(5e-324)), (1.0, Some(1.7e308))],
            vec![(1e-320, Some(1.0)), (2e-320, Some(2.0))],
            vec![(1.8e19, Some(1.0))],
            (0..5000)
                .map(|i| (f64::from(i), Some(f64::from(i) + 1.0)))
                .collect(),
        ] {
            let count = points.len();
            let svg = chart(points).svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.contains("a &lt;b&gt;") && svg.len() < 40_000, "{count}");
        }
    }

    #[test]
    fn a_gap_is_marked_and_a_lone_point_drawn() {
        let svg = chart(vec![
            (0.0, Some(1.0)),
            (1.0, None),
            (2.0, Some(3.0)),
            (3.0, Some(4.0)),
        ])
        .svg();
        assert!(svg.contains("class=\"bad\"") && svg.contains("h0"), "{svg}");
        let whole = chart(vec![(0.0, Some(1.0)), (1.0, Some(2.0))]).svg();
        assert!(!whole.contains("class=\"bad\""));
    }

    #[test]
    fn thinning_keeps_extremes_and_gaps() {
        let mut points: Vec<(f64, Option<f64>)> =
            (0..10_000).map(|i| (f64::from(i), Some(1.0))).collect();
        points[1234].1 = Some(9.0);
        points[4321].1 = Some(-9.0);
        points[7000].1 = None;
        let kept = thinned(&points, MOST_POINTS);
        assert!(kept.len() <= MOST_POINTS);
        for point in [1234, 4321, 7000] {
            assert!(kept.contains(&point), "{point}");
        }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            ticks(0.0, 1.0, 5, false),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(
            ticks(0.1, 10.0, 5, true),
            [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
        );
        assert_eq!(ticks(0.25, 0.55, 3, true), [0.30000000000000004, 0.4, 0.5]);
        assert_eq!(
            (tick(15_000.0), tick(0.30000000000000004)),
            ("15k".into(), "0.3".into())
        );
    }
}
