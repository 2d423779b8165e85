//! Which charts a page has: one for each metric, over steps, and one for each metric that has a
//! value for every t.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::html::{escape, grouped, number};
use super::metrics::finite;
use super::run::RunFacts;
use super::svg::{Chart, Series, thinned};

/// Points of a line that a script draws.
const MOST_POINTS: usize = 4000;

/// Colours; further runs have broken lines in the same.
pub(super) const COLOURS: usize = 8;

/// The shades of the lines of one run's t.
const SHADES: usize = 10;

/// Metrics by their order in the page, with what they are.
const KNOWN: [(&str, &str); 21] = [
    ("loss", "what is minimised"),
    ("mse", "squared error of the reconstruction"),
    ("perceptual", "perceptual distance (LPIPS)"),
    ("quant", "quantization loss"),
    ("psnr", "dB, of validation images by the moving average"),
    ("accuracy_t", "share of codes that are the likeliest"),
    ("loss_t", "cross-entropy, nats a code"),
    ("psnr_t", "dB, of images decoded from the first t maps"),
    ("lpips_t", "of images decoded from the first t maps"),
    ("codes_used_t", "codes chosen since the last line"),
    ("perplexity_t", "exp of the entropy of the codes chosen"),
    (
        "adversarial",
        "generator's side of the discriminator's loss",
    ),
    ("adaptive_weight", "λ of the adversarial loss"),
    ("disc_loss", "the discriminator's loss"),
    ("disc_real", "share of originals it takes for such"),
    ("disc_fake", "share of reconstructions it takes for such"),
    ("disc_grad_norm", "before clipping"),
    ("grad_norm", "before clipping"),
    ("latent_std", "standard deviation of the latents"),
    ("codes_restarted", "dead codes given a new place"),
    ("lr", "learning rate"),
];

/// What is no curve of its own.
const LEFT_OUT: [&str; 3] = ["step", "epoch", "eta_seconds"];

/// A run with its place in the page.
pub(super) type Numbered<'a> = (usize, &'a RunFacts);

/// A chart with what stands below it.
pub(super) struct Figure {
    pub chart: Chart,
    pub about: &'static str,
    /// Lines of a legend: the class of the colour, and markup.
    pub legend: Vec<(String, String)>,
    /// What the script draws it from.
    pub data: Value,
}

/// The classes of a run's lines: its own, its colour, and broken or not.
pub(super) fn class(number: usize) -> String {
    let (turn, colour) = (number / COLOURS % 3, number % COLOURS);
    format!("r{number} c{colour} d{turn}")
}

/// All metrics of these runs, in the page's order; whether each is over t.
fn metrics<'a>(runs: &[Numbered<'a>]) -> Vec<(&'a str, bool)> {
    let mut all = BTreeMap::new();
    for (name, over_t) in runs.iter().flat_map(|(_, run)| run.metrics.names()) {
        *all.entry(name).or_insert(over_t) |= over_t;
    }
    let place = |name: &str| KNOWN.iter().position(|(known, _)| *known == name);
    let mut all: Vec<(&str, bool)> = all
        .into_iter()
        .filter(|(name, _)| !LEFT_OUT.contains(name))
        .collect();
    all.sort_by_key(|(name, _)| (place(name).unwrap_or(KNOWN.len()), *name));
    all
}

fn about(name: &str) -> &'static str {
    let known = KNOWN.iter().find(|(known, _)| *known == name);
    known.map_or("", |(_, about)| about)
}

/// Charts over steps of the metrics that are single numbers.
pub(super) fn over_steps(runs: &[Numbered]) -> Vec<Figure> {
    let singles = metrics(runs).into_iter().filter(|(_, over_t)| !over_t);
    singles.map(|(name, _)| over_steps_of(name, runs)).collect()
}

fn over_steps_of(name: &str, runs: &[Numbered]) -> Figure {
    let (mut series, mut legend, mut data) = (Vec::new(), Vec::new(), Vec::new());
    for (place, run) in runs {
        let lines = run.metrics.single(name);
        let found: Vec<_> = lines
            .map(|(line, value)| (line.step as f64, line.seconds, value))
            .collect();
        if found.is_empty() {
            continue;
        }
        let points: Vec<(f64, Option<f64>)> = found.iter().map(|(x, _, y)| (*x, *y)).collect();
        legend.push((class(*place), summary(name, &run.name, &points)));
        let kept = thinned(&points, MOST_POINTS);
        let times: Vec<Option<f64>> = kept.iter().map(|at| found[*at].1).collect();
        let has_times = times.iter().all(Option::is_some);
        data.push(json!({
            "class": class(*place),
            "name": run.name,
            "x": kept.iter().map(|at| points[*at].0).collect::<Vec<f64>>(),
            "y": kept.iter().map(|at| points[*at].1).collect::<Vec<Option<f64>>>(),
            "seconds": has_times.then_some(times),
        }));
        series.push(Series {
            name: run.name.clone(),
            class: class(*place),
            points: kept.iter().map(|at| points[*at]).collect(),
        });
    }
    let chart = Chart {
        title: name.to_string(),
        x: "step",
        series,
    };
    Figure {
        about: about(name),
        legend,
        data: json!({"x": "step", "log": chart.is_log(), "series": data}),
        chart,
    }
}

/// The last value, and the best one where a better one is lower or higher.
fn summary(name: &str, run: &str, points: &[(f64, Option<f64>)]) -> String {
    let bad = points.iter().filter(|(_, y)| y.is_none()).count();
    let last = points.last().and_then(|(_, y)| *y);
    let mut text = format!(
        "{} <b>{}</b>",
        escape(run),
        last.map_or("not finite".to_string(), number)
    );
    let lower = ["loss", "mse", "perceptual", "quant"].contains(&name);
    let better = |a: f64, b: f64| if lower { a < b } else { a > b };
    if lower || name == "psnr" {
        let finite = points.iter().filter_map(|(x, y)| Some((*x, (*y)?)));
        let best = finite.reduce(|best, one| if better(one.1, best.1) { one } else { best });
        if let Some((step, value)) = best {
            let word = if lower { "least" } else { "most" };
            text.push_str(&format!(" · {word} {} at {}", number(value), grouped(step)));
        }
    }
    if bad > 0 {
        text.push_str(&format!(" · <em>{bad} not finite</em>"));
    }
    text
}

/// Charts of the metrics that have a value for each t: the last ones of all runs.
pub(super) fn over_t(runs: &[Numbered]) -> Vec<Figure> {
    let curves = metrics(runs).into_iter().filter(|(_, over_t)| *over_t);
    curves.map(|(name, _)| profiles(name, runs)).collect()
}

/// The last values over t of each run.
fn profiles(name: &str, runs: &[Numbered]) -> Figure {
    let (mut series, mut legend) = (Vec::new(), Vec::new());
    for (place, run) in runs {
        let Some((line, values)) = run.metrics.over_t(name).next_back() else {
            continue;
        };
        let points = (1..).zip(values).map(|(t, y)| (f64::from(t), finite(*y)));
        let step = grouped(line.step as f64);
        let text = format!("{} at step {step}", escape(&run.name));
        legend.push((class(*place), text));
        series.push(Series {
            name: run.name.clone(),
            class: class(*place),
            points: points.collect(),
        });
    }
    figure(name, "t", series, legend)
}

/// Charts over steps of one run, a line for each t.
pub(super) fn of_each_t(run: &RunFacts) -> Vec<Figure> {
    let curves = metrics(&[(0, run)])
        .into_iter()
        .filter(|(_, over_t)| *over_t);
    curves
        .map(|(name, _)| {
            let lines = || run.metrics.over_t(name);
            let most = lines().map(|(_, values)| values.len()).max().unwrap_or(0);
            let shade = |t: usize| t * (SHADES - 1) / (most.max(2) - 1);
            let of_t = |t: usize| {
                let points: Vec<_> = lines()
                    .filter_map(|(line, values)| Some((line.step as f64, finite(*values.get(t)?))))
                    .collect();
                let kept = thinned(&points, MOST_POINTS);
                Series {
                    name: format!("t = {}", t + 1),
                    class: format!("t{}", shade(t)),
                    points: kept.iter().map(|at| points[*at]).collect(),
                }
            };
            let legend = match most {
                0 => vec![],
                _ => vec![
                    ("t0".to_string(), "t = 1".to_string()),
                    (format!("t{}", shade(most - 1)), format!("t = {most}")),
                ],
            };
            // More lines than anybody tells apart are no chart.
            figure(name, "step", (0..most.min(64)).map(of_t).collect(), legend)
        })
        .collect()
}

fn figure(
    name: &str,
    x: &'static str,
    series: Vec<Series>,
    legend: Vec<(String, String)>,
) -> Figure {
    let chart = Chart {
        title: name.to_string(),
        x,
        series,
    };
    let data: Vec<Value> = chart
        .series
        .iter()
        .map(|series| {
            let points = series.points.iter().copied();
            let (x, y): (Vec<f64>, Vec<Option<f64>>) = points.unzip();
            json!({"class": series.class, "name": series.name, "x": x, "y": y, "seconds": null})
        })
        .collect();
    Figure {
        about: about(name),
        legend,
        data: json!({"x": x, "log": chart.is_log(), "series": data}),
        chart,
    }
}
