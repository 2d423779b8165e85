//! `POST /v1/images`: from JSON to what is drawn, and the command line that draws the same.

use std::hash::{BuildHasher, Hasher, RandomState};

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::facts::Facts;
use super::refusal::Refusal;
use crate::config::CfgSchedule;
use crate::sample::{Impossible, SampleOptions, Wishes};
use crate::telemetry::shell;

/// Guidance and temperature beyond these make no pictures, and could overflow the logits.
const CFG: std::ops::RangeInclusive<f64> = 0.0..=100.0;
const TEMPERATURE: std::ops::RangeInclusive<f64> = 0.01..=100.0;

/// A list of names: looking one up compares it with all words of all classes, and so many take
/// 20 ms with 200 classes.
const CLASS_BYTES: usize = 200;

/// As clients send it; names are those of `rdpm sample`'s options. What is left out keeps the
/// model's setting.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    class: Option<Value>,
    num: Option<usize>,
    seed: Option<u64>,
    cfg: Option<f64>,
    cfg_schedule: Option<CfgSchedule>,
    temperature: Option<f64>,
    gumbel: Option<bool>,
    top_k: Option<usize>,
    top_p: Option<f64>,
}

/// What is drawn.
#[derive(Debug, PartialEq)]
pub struct Drawing {
    /// Of images 0, 1, 2, …
    pub labels: Vec<u32>,
    pub seed: u64,
    pub options: SampleOptions,
    /// Draws the same.
    pub command: String,
    /// What else `class` could mean.
    pub notes: Vec<String>,
}

impl Drawing {
    /// Errors: 400 if it is not JSON, 422 if a value is of another type or out of range.
    pub fn read(body: &[u8], facts: &Facts) -> Result<Self, Refusal> {
        let mut text = body.iter().filter(|byte| !byte.is_ascii_whitespace());
        let asked = match text.next() {
            Some(b'{') => serde_json::from_slice(body),
            // A sequence would be taken as the fields in their order.
            _ => serde_json::from_slice::<Map<String, Value>>(body).map(|_| Asked::default()),
        };
        let asked = asked.map_err(|e| {
            let status = match e.is_data() {
                true => StatusCode::UNPROCESSABLE_ENTITY,
                false => StatusCode::BAD_REQUEST,
            };
            let hint = "an object with class, num, seed, cfg, cfg_schedule, temperature, gumbel, top_k, top_p, \
                        each of which may be left out";
            Refusal::new(status, e.to_string(), hint)
        })?;
        let (spec, (classes, notes)) = asked.classes(facts)?;
        let num = asked.num.unwrap_or(classes.len());
        if num == 0 || num > facts.num {
            return Err(Refusal::impossible(
                format!("num is {num}"),
                format!("a request asks for 1 to {} images", facts.num),
            ));
        }
        let seed = asked.seed.unwrap_or_else(random);
        let options = asked.options(facts)?;
        Ok(Self {
            labels: classes.iter().copied().cycle().take(num).collect(),
            seed,
            command: command(facts, spec.as_deref(), num, seed, &options),
            options,
            notes,
        })
    }
}

/// Indices of classes, and notes about them.
type Found = (Vec<u32>, Vec<String>);

impl Asked {
    /// The class as `--class` names it, and what it means.
    fn classes(&self, facts: &Facts) -> Result<(Option<String>, Found), Refusal> {
        let spec = match &self.class {
            // A model trained without labels has a single class.
            None if facts.classes.is_empty() => return Ok((None, (vec![0], Vec::new()))),
            None => {
                return Err(Refusal::impossible(
                    format!("class is missing: the model has {}", facts.classes.len()),
                    "class takes a name, a number, a list of them, or all",
                ));
            }
            Some(Value::Number(number)) if number.is_u64() => number.to_string(),
            Some(Value::String(text)) if text.len() > CLASS_BYTES => {
                return Err(Refusal::impossible(
                    format!("class has {} bytes", text.len()),
                    format!("at most {CLASS_BYTES}; class indices are shorter than names"),
                ));
            }
            Some(Value::String(text)) => text.trim().to_string(),
            Some(other) => {
                let shown: String = other.to_string().chars().take(60).collect();
                return Err(Refusal::impossible(
                    format!("class is {shown}, expected a name or a number"),
                    "several are a list in one string, as \"tench, 207\"",
                ));
            }
        };
        let found = facts.classes.resolve_with_notes(&spec);
        let found = found.map_err(|e| Refusal::of(StatusCode::UNPROCESSABLE_ENTITY, &e))?;
        Ok((Some(spec), found))
    }

    fn options(&self, facts: &Facts) -> Result<SampleOptions, Refusal> {
        let wishes = Wishes {
            cfg: within("cfg", self.cfg, &CFG)?,
            cfg_schedule: self.cfg_schedule,
            temperature: within("temperature", self.temperature, &TEMPERATURE)?,
            gumbel: self.gumbel,
            top_k: self.top_k,
            top_p: self.top_p,
        };
        wishes
            .over(facts.options)
            .map_err(|impossible| match impossible {
                Impossible::OutOfRange {
                    name,
                    value,
                    allowed,
                } => {
                    let value = shell::number(value);
                    Refusal::impossible(format!("{name} is {value}"), format!("allowed: {allowed}"))
                }
                Impossible::WithoutGumbel { name } => Refusal::impossible(
                    format!(
                        "{name} has no meaning without Gumbel noise: the most likely code is taken"
                    ),
                    format!("leave out {name}, or set gumbel to true"),
                ),
            })
    }
}

fn within(
    name: &str,
    value: Option<f64>,
    range: &std::ops::RangeInclusive<f64>,
) -> Result<Option<f64>, Refusal> {
    match value.filter(|value| !range.contains(value)) {
        Some(value) => Err(Refusal::impossible(
            format!("{name} is {}", shell::number(value)),
            format!("allowed: {} to {}", range.start(), range.end()),
        )),
        None => Ok(value),
    }
}

/// A seed that is short enough to be typed again.
fn random() -> u64 {
    // The keys of the standard library's hash maps are random.
    RandomState::new().build_hasher().finish() & 0xFFFF_FFFF
}

fn command(
    facts: &Facts,
    class: Option<&str>,
    num: usize,
    seed: u64,
    options: &SampleOptions,
) -> String {
    let mut line = format!("rdpm sample --model {}", value(&facts.model));
    if let Some(class) = class {
        line += &format!(" --class {}", value(class));
    }
    line += &format!(
        " --num {num} --seed {seed} --cfg {}",
        shell::number(options.cfg)
    );
    if options.cfg_schedule != facts.options.cfg_schedule {
        line += match options.cfg_schedule {
            CfgSchedule::Constant => " --cfg-schedule constant",
            CfgSchedule::Linear => " --cfg-schedule linear",
        };
    }
    match options.gumbel {
        true => line += &format!(" --temperature {}", shell::number(options.temperature)),
        false => line += " --no-gumbel",
    }
    if options.gumbel && !facts.options.gumbel {
        line += " --gumbel";
    }
    if let Some(k) = options.top_k {
        line += &format!(" --top-k {k}");
    }
    if let Some(p) = options.top_p {
        line += &format!(" --top-p {}", shell::number(p));
    }
    line
}

/// A value in a command line: one that begins as an option does is in quotes, to be seen as one.
fn value(text: &str) -> String {
    match text.starts_with('-') {
        true => shell::in_quotes(text),
        false => shell::word(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SampleConfig;
    use crate::data::Classes;

    fn facts() -> Facts {
        Facts {
            model: "runs/my model".into(),
            classes: Classes::imagenet(),
            options: SampleOptions::from(&SampleConfig::default()),
            steps: 4,
            num: 8,
            listing: Default::default(),
        }
    }

    #[test]
    fn what_is_left_out_is_the_models_and_the_command_says_it() {
        let body = br#"{"class": "golden retriever, 1", "num": 3, "seed": 18446744073709551615}"#;
        let drawing = Drawing::read(body, &facts()).expect("valid");
        assert_eq!(drawing.labels, [207, 1, 207]);
        assert_eq!(
            drawing.options,
            SampleOptions::from(&SampleConfig::default())
        );
        assert_eq!(
            drawing.command,
            "rdpm sample --model 'runs/my model' --class 'golden retriever, 1' --num 3 \
             --seed 18446744073709551615 --cfg 4 --temperature 1"
        );
        let body = br#"{"class": 207, "seed": 1, "cfg": 2.5, "cfg_schedule": "constant", "temperature": 0.7,
                        "top_k": 5, "top_p": 0.9}"#;
        let drawing = Drawing::read(body, &facts()).expect("valid");
        assert_eq!(drawing.labels, [207]);
        let end = "--class 207 --num 1 --seed 1 --cfg 2.5 --cfg-schedule constant --temperature 0.7 --top-k 5 --top-p 0.9";
        assert!(drawing.command.ends_with(end), "{}", drawing.command);
        let seed = || {
            Drawing::read(br#"{"class": 1}"#, &facts())
                .expect("valid")
                .seed
        };
        assert_ne!(seed(), seed());
    }

    #[test]
    fn the_client_is_told_what_else_a_number_could_mean() {
        let mut facts = facts();
        facts.classes = Classes::named(["n01443537", "n01496331", "n02099601"]);
        let notes = |body: &str| {
            let drawing = Drawing::read(body.as_bytes(), &facts).expect("valid");
            drawing.notes.join("; ")
        };
        let told = notes(r#"{"class": 1}"#);
        assert!(told.contains("not as index:1"), "{told}");
        assert_eq!(notes(r#"{"class": "index:1"}"#), "");
    }

    #[test]
    fn a_word_of_a_shell_is_one_word() {
        assert_eq!(value("a/b-1.5:c"), "a/b-1.5:c");
        assert_eq!(value("it's $(x)"), r"'it'\''s $(x)'");
        assert_eq!(value(""), "''");
        assert_eq!(value("--help"), "'--help'");
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_with_a_reason() {
        let deep = "[".repeat(100_000);
        let within = format!(r#"{{"class": {deep}"#);
        let long = format!(r#"{{"class": "{}"}}"#, "1,".repeat(200));
        let cases: &[(&str, u16, &str)] = &[
            ("", 400, "EOF"),
            ("{", 400, "EOF"),
            ("{\"class\": 1,}", 400, "trailing comma"),
            ("{\"class\": NaN}", 400, "expected"),
            ("\u{0}", 400, "expected"),
            (&deep, 422, "invalid type"),
            (&within, 400, "recursion limit"),
            ("[]", 422, "class"),
            ("[1,2,3,4,5,6,7,8,9,10]", 422, ""),
            ("null", 422, "invalid type"),
            ("{}", 422, "class is missing"),
            ("{\"class\": 1, \"sed\": 1}", 422, "unknown field `sed`"),
            ("{\"class\": -1}", 422, "class is -1, expected a name"),
            ("{\"class\": 207.0}", 422, "class is 207.0, expected"),
            ("{\"class\": true}", 422, "class is true, expected"),
            ("{\"class\": {\"a\": 1}}", 422, "expected a name"),
            (
                "{\"class\": 1, \"class\": 2}",
                422,
                "duplicate field `class`",
            ),
            ("{\"class\": 1, \n\"num\": \"4\"}", 422, "line 2 column 10"),
            ("{\"class\": 1000}", 422, "no class 1000"),
            ("{\"class\": \"golden retriver\"}", 422, "golden retriever"),
            ("{\"class\": \"all\"}", 422, "num is 1000"),
            (&long, 422, "has 400 bytes"),
            ("{\"class\": 1, \"num\": 0}", 422, "num is 0"),
            ("{\"class\": 1, \"num\": 9}", 422, "1 to 8"),
            ("{\"class\": 1, \"num\": 1e30}", 422, ""),
            ("{\"class\": 1, \"seed\": -1}", 422, "seed"),
            ("{\"class\": 1, \"seed\": 1.5}", 422, ""),
            ("{\"class\": 1, \"cfg\": -0.1}", 422, "cfg is -0.1"),
            ("{\"class\": 1, \"cfg\": 1e300}", 422, "cfg is"),
            ("{\"class\": 1, \"cfg\": 1e999}", 400, "out of range"),
            ("{\"class\": 1, \"cfg\": \"NaN\"}", 422, ""),
            (
                "{\"class\": 1, \"temperature\": 0}",
                422,
                "temperature is 0",
            ),
            ("{\"class\": 1, \"top_k\": 0}", 422, "top_k"),
            ("{\"class\": 1, \"top_p\": 1.01}", 422, "top_p"),
            (
                "{\"class\": 1, \"gumbel\": false, \"top_k\": 2}",
                422,
                "no meaning",
            ),
        ];
        for (body, status, words) in cases {
            let shown = &body[..body.len().min(60)];
            let refusal = Drawing::read(body.as_bytes(), &facts()).expect_err(shown);
            assert_eq!(refusal.status.as_u16(), *status, "{shown}: {refusal:?}");
            assert!(refusal.json().contains(words), "{shown}: {refusal:?}");
        }
    }
}
