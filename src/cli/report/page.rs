//! The page: one file of HTML, with its style, its script and its pictures in it.

use std::fmt::Write;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::charts::{self, Figure, Numbered};
use super::configs;
use super::html::{self, bytes, duration, escape, grouped, number, table};
use super::run::RunFacts;
use super::svg;
use crate::store::run::date;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// What the page may load: nothing but itself.
fn policy() -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'",
        hash(STYLE),
        hash(SCRIPT)
    )
}

/// The page about these runs.
pub(super) fn page(runs: &[RunFacts]) -> String {
    let all: Vec<Numbered> = runs.iter().enumerate().collect();
    let mut page = Page::default();
    let title = match runs {
        [run] => run.name.clone(),
        runs => format!("{} runs", runs.len()),
    };
    let _ = write!(
        page.html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{} · rdpm report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>{}</h1><p class=\"sub\">rdpm {}, {}</p></header>\n",
        policy(),
        escape(&title),
        escape(&title),
        env!("CARGO_PKG_VERSION"),
        date(std::time::SystemTime::now()),
    );
    page.bar(&all);
    page.html.push_str("<main>\n");
    page.overview(runs);
    for (stage, heading) in [
        (Some("train-vae"), "Tokenizer"),
        (Some("train-gen"), "Generator"),
        (None, "Other runs"),
    ] {
        let is_known = |run: &RunFacts| {
            let stage = run.stage.as_deref();
            matches!(stage, Some("train-vae" | "train-gen"))
        };
        let of_stage: Vec<Numbered> = all
            .iter()
            .filter(|(_, run)| match stage {
                Some(stage) => run.stage.as_deref() == Some(stage),
                None => !is_known(run),
            })
            .copied()
            .collect();
        if !of_stage.is_empty() {
            page.stage(heading, &of_stage);
        }
    }
    page.evaluations(runs);
    page.records(runs);
    let data = json!({"layout": svg::layout(), "charts": page.data});
    let _ = write!(
        page.html,
        "</main>\n<script type=\"application/json\" id=\"data\">{}</script>\n\
         <script>{SCRIPT}</script>\n</body>\n</html>\n",
        html::json(&data)
    );
    page.html
}

/// A page in the making.
#[derive(Default)]
struct Page {
    html: String,
    /// What the script draws each chart from, by the chart's number.
    data: Vec<Value>,
}

impl Page {
    /// Which line is whose, and what a reader can change.
    fn bar(&mut self, runs: &[Numbered]) {
        self.html
            .push_str("<div class=\"bar\"><div class=\"runs\">");
        for (number, run) in runs {
            let _ = write!(
                self.html,
                "<label><input type=\"checkbox\" checked data-run=\"{number}\">\
                 <svg class=\"swatch\" viewBox=\"0 0 24 8\"><path class=\"line {}\" d=\"M1 4H23\"/></svg>\
                 <span>{}</span></label>",
                charts::class(*number),
                escape(&run.name)
            );
        }
        self.html.push_str(
            "</div><div class=\"controls\">\
             <label>y axis <select id=\"scale\"><option value=\"auto\">as suits each</option>\
             <option value=\"linear\">linear</option><option value=\"log\">logarithmic</option></select></label>\
             <label>x axis <select id=\"along\"><option value=\"step\">steps</option>\
             <option value=\"time\">time of training</option></select></label>\
             <label>smoothing <input id=\"smooth\" type=\"range\" min=\"0\" max=\"0.98\" step=\"0.02\" value=\"0\">\
             <output id=\"smoothed\">0</output></label></div></div>\n",
        );
    }

    fn overview(&mut self, runs: &[RunFacts]) {
        let head = [
            "run",
            "stage",
            "steps",
            "state",
            "last loss",
            "images/s",
            "time of training",
            "seed",
        ];
        let rows: Vec<(String, Vec<String>)> = runs
            .iter()
            .map(|run| {
                let last = |name: &str| {
                    let (_, value) = run.metrics.single(name).next_back()?;
                    Some(value.map_or("not finite".into(), number))
                };
                let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_string());
                let lines = &run.metrics.lines;
                let time = lines.iter().rev().find_map(|line| line.seconds);
                let seed = run.state.get("seed").and_then(Value::as_u64);
                let steps = match run.planned {
                    Some(planned) => {
                        format!(
                            "{} of {}",
                            grouped(run.step() as f64),
                            grouped(planned as f64)
                        )
                    }
                    None => grouped(run.step() as f64),
                };
                let state = match (run.is_finished(), run.planned, lines.is_empty()) {
                    (true, ..) => "finished",
                    (_, _, true) => "no metrics yet",
                    (_, Some(_), _) => "under way or stopped",
                    _ => "–",
                };
                let cells = vec![
                    escape(&run.name),
                    or_dash(run.stage.as_deref().map(escape)),
                    steps,
                    state.to_string(),
                    or_dash(last("loss")),
                    or_dash(last("images_per_second")),
                    or_dash(time.map(duration)),
                    or_dash(seed.map(|seed| seed.to_string())),
                ];
                (String::new(), cells)
            })
            .collect();
        self.html.push_str("<section>\n");
        self.html
            .push_str(&table("overview", &head.map(str::to_string), &rows));
        for run in runs {
            for note in &run.notes {
                let (name, note) = (escape(&run.name), escape(note));
                let _ = writeln!(self.html, "<p class=\"note\">{name}: {note}</p>");
            }
        }
        self.html.push_str("</section>\n");
    }

    fn stage(&mut self, heading: &str, runs: &[Numbered]) {
        let _ = writeln!(self.html, "<section><h2>{heading}</h2>");
        self.figures(charts::over_steps(runs));
        let over_t = charts::over_t(runs);
        if !over_t.is_empty() {
            self.html.push_str("<h3>Over t</h3>\n");
            self.figures(over_t);
            for (_, run) in runs {
                let each = charts::of_each_t(run);
                if !each.is_empty() {
                    let name = escape(&run.name);
                    let _ = writeln!(
                        self.html,
                        "<details><summary>Each t over the steps of {name}</summary>"
                    );
                    self.figures(each);
                    self.html.push_str("</details>\n");
                }
            }
        }
        self.pictures(runs);
        let all: Vec<&RunFacts> = runs.iter().map(|(_, run)| *run).collect();
        let settings = configs::section(&all);
        if !settings.is_empty() {
            let word = if all.len() > 1 {
                "Settings that differ"
            } else {
                "Settings"
            };
            let _ = write!(self.html, "<h3>{word}</h3>\n{settings}");
        }
        self.html.push_str("</section>\n");
    }

    fn figures(&mut self, figures: Vec<Figure>) {
        self.html.push_str("<div class=\"figures\">\n");
        for figure in figures {
            let _ = write!(
                self.html,
                "<figure class=\"chart\" data-chart=\"{}\"><figcaption><b>{}</b> <span>{}</span>\
                 </figcaption>{}<ul>",
                self.data.len(),
                escape(&figure.chart.title),
                figure.about,
                figure.chart.svg()
            );
            for (class, text) in figure.legend {
                let _ = write!(
                    self.html,
                    "<li class=\"{class}\"><svg class=\"swatch\" viewBox=\"0 0 24 8\">\
                     <path class=\"line {class}\" d=\"M1 4H23\"/></svg>{text}</li>"
                );
            }
            self.html.push_str("</ul></figure>\n");
            self.data.push(figure.data);
        }
        self.html.push_str("</div>\n");
    }

    /// Strips of the pictures of each run, one slider for all of them.
    fn pictures(&mut self, runs: &[Numbered]) {
        if runs.iter().all(|(_, run)| run.pictures.is_empty()) {
            return;
        }
        self.html.push_str(
            "<h3>Pictures</h3>\n<div class=\"album\"><div class=\"controls\"><label>step \
             <input type=\"range\" class=\"time\"> <output></output></label></div>\n<div class=\"strips\">\n",
        );
        for (number, run) in runs.iter().filter(|(_, run)| !run.pictures.is_empty()) {
            let _ = write!(
                self.html,
                "<div class=\"strip r{number}\"><p>{}: {} of {}</p><div class=\"film\">",
                escape(&run.name),
                run.pictures.len(),
                run.all_pictures
            );
            for picture in &run.pictures {
                let step = grouped(picture.step as f64);
                let _ = write!(
                    self.html,
                    "<figure data-step=\"{}\"><img alt=\"step {step}\" width=\"{}\" height=\"{}\" \
                     src=\"{}\"><figcaption>step {step}</figcaption></figure>",
                    picture.step, picture.width, picture.height, picture.address
                );
            }
            self.html.push_str("</div></div>\n");
        }
        self.html.push_str("</div></div>\n");
    }

    fn evaluations(&mut self, runs: &[RunFacts]) {
        let all = || runs.iter().flat_map(|run| &run.evaluations);
        let mut names: Vec<&str> = Vec::new();
        for (name, ..) in all().flat_map(|evaluation| &evaluation.metrics) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        if names.is_empty() {
            return;
        }
        let head = ["run", "file", "images"].map(str::to_string);
        let head: Vec<String> = head
            .into_iter()
            .chain(names.iter().map(|n| escape(n)))
            .collect();
        let mut rows = Vec::new();
        for run in runs {
            for evaluation in &run.evaluations {
                let images = evaluation.images.map(|n| grouped(n as f64));
                let mut cells = vec![
                    escape(&run.name),
                    escape(&evaluation.name),
                    images.unwrap_or_else(|| "–".to_string()),
                ];
                cells.extend(names.iter().map(|name| {
                    let found = evaluation.metrics.iter().find(|(own, ..)| own == name);
                    let Some((_, value, interval)) = found else {
                        return "–".to_string();
                    };
                    let value = value.map_or("not finite".to_string(), number);
                    match interval {
                        Some([low, high]) => {
                            format!(
                                "{value} <small>[{}, {}]</small>",
                                number(*low),
                                number(*high)
                            )
                        }
                        None => value,
                    }
                }));
                rows.push((String::new(), cells));
            }
        }
        let _ = write!(
            self.html,
            "<section><h2>Evaluations</h2>\n{}</section>\n",
            table("evaluations", &head, &rows)
        );
    }

    /// Starts, machines, checkpoints, data and frozen weights.
    fn records(&mut self, runs: &[RunFacts]) {
        let mut html = String::new();
        for run in runs {
            let mut rows: Vec<(String, Vec<String>)> = Vec::new();
            let mut row = |key: &str, value: String| {
                rows.push((String::new(), vec![escape(key), value]));
            };
            row("folder", escape(&run.path.display().to_string()));
            for start in &run.starts {
                row("started", start_of(start));
            }
            let text = |key: &str| run.state.get(key).and_then(Value::as_str).map(escape);
            if let Some(version) = text("version") {
                row("written by", format!("rdpm {version}"));
            }
            if let Some(images) = run.state.get("images").and_then(Value::as_u64) {
                let data = text("data").unwrap_or_default();
                let told = format!("{} images, <code>{data}</code>", grouped(images as f64));
                row("data", told);
            }
            let frozen = run.state.get("frozen").and_then(Value::as_object);
            for (what, hash) in frozen.into_iter().flatten() {
                let hash = escape(hash.as_str().unwrap_or_default());
                row(what, format!("<code>{hash}</code>"));
            }
            for checkpoint in &run.checkpoints {
                let latest = if checkpoint.is_latest {
                    ", the latest"
                } else {
                    ""
                };
                let told = format!(
                    "{}, {}{latest}",
                    escape(&checkpoint.name),
                    bytes(checkpoint.bytes)
                );
                row("checkpoint", told);
            }
            let _ = write!(
                html,
                "<details{}><summary>{}</summary>\n{}</details>\n",
                if runs.len() == 1 { " open" } else { "" },
                escape(&run.name),
                table("records", &["".to_string(), "".to_string()], &rows)
            );
        }
        let _ = write!(
            self.html,
            "<section><h2>Machines and checkpoints</h2>\n{html}</section>\n"
        );
    }
}

/// A line of `starts.jsonl` as text.
fn start_of(start: &serde_json::Map<String, Value>) -> String {
    let text = |key: &str| start.get(key).and_then(Value::as_str);
    let count = |key: &str| start.get(key).and_then(Value::as_u64);
    let time = count("time").and_then(|s| {
        std::time::SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(s))
    });
    let mut parts = Vec::new();
    parts.extend(time.map(date));
    parts.extend(count("step").map(|step| format!("after step {}", grouped(step as f64))));
    parts.extend(text("device").map(escape));
    parts.extend(count("threads").map(|n| format!("{n} threads")));
    parts.extend(
        count("processes")
            .filter(|n| *n > 1)
            .map(|n| format!("{n} processes")),
    );
    parts.extend(text("version").map(|version| format!("rdpm {}", escape(version))));
    let mut told = parts.join(", ");
    if let Some(command) = text("command") {
        let _ = write!(told, "<br><code>{}</code>", escape(command));
    }
    told
}
