//! What a run's folder says of it. It is read as it is, by whichever version it was written and
//! whether or not it is going on: what is missing or damaged is left out, and a note tells.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::configs;
use super::metrics::{LARGEST, Metrics};
use super::pictures::{self, Picture};
use crate::config::Config;
use crate::error::{Result, hinted};
use crate::store::run::RunFolder;

/// A run, as far as it can be read.
#[derive(Debug, Default)]
pub(super) struct RunFacts {
    pub path: PathBuf,
    /// What tells it from the other runs of the page.
    pub name: String,
    /// `train-vae` or `train-gen`; none where nothing says.
    pub stage: Option<String>,
    pub metrics: Metrics,
    /// By `section.key`, in the order of the file.
    pub config: Vec<(String, String)>,
    /// Of the newest checkpoint.
    pub state: Map<String, Value>,
    pub checkpoints: Vec<Checkpoint>,
    pub pictures: Vec<Picture>,
    /// How many there are in the folder.
    pub all_pictures: usize,
    pub evaluations: Vec<Evaluation>,
    pub starts: Vec<Map<String, Value>>,
    /// Steps that it is to have.
    pub planned: Option<u64>,
    /// What of it could not be read.
    pub notes: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Checkpoint {
    pub name: String,
    pub bytes: u64,
    pub is_latest: bool,
}

/// A report of eval-vae or eval-fid.
#[derive(Debug)]
pub(super) struct Evaluation {
    /// The file, within the run, and the point of a sweep.
    pub name: String,
    pub images: Option<u64>,
    /// A value, and the interval that it lies in.
    pub metrics: Vec<(String, Option<f64>, Option<[f64; 2]>)>,
}

/// Names that tell the runs apart: their paths without what is common to all.
pub(super) fn names(paths: &[PathBuf]) -> Vec<String> {
    let whole: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let parts = path.components().skip(1);
            parts
                .map(|part| part.as_os_str().to_string_lossy().into_owned())
                .collect()
        })
        .collect();
    let name = |parts: &[String]| parts.join("/");
    for from_end in 1.. {
        let cut = |parts: &Vec<String>| name(&parts[parts.len().saturating_sub(from_end)..]);
        let names: Vec<String> = whole.iter().map(cut).collect();
        let different: std::collections::BTreeSet<&String> = names.iter().collect();
        let are_whole = whole.iter().all(|parts| parts.len() <= from_end);
        if different.len() == names.len() || are_whole {
            return names;
        }
    }
    Vec::new()
}

impl RunFacts {
    /// Errors: there is nothing at `path`, or it is neither a run nor a file of metrics.
    pub fn read(path: &Path, name: String, most_pictures: usize) -> Result<Self> {
        let mut run = Self {
            path: path.to_path_buf(),
            name,
            ..Self::default()
        };
        if path.is_file() {
            run.read_metrics(path)?;
            if run.metrics.lines.is_empty() {
                return Err(hinted(
                    format!("{} holds no line of metrics", path.display()),
                    "name run folders, or files like their metrics.jsonl",
                ));
            }
        } else {
            let folder = RunFolder::open(path)?;
            // What is a pipe would be waited for.
            match folder.metrics().is_file() {
                true => run.read_metrics(&folder.metrics())?,
                false => run.notes.push("it has no metrics.jsonl".to_string()),
            }
            run.read_folder(&folder, most_pictures);
        }
        run.stage = run.stage_of();
        let batch = run.batch_size();
        if let Some(batch) = batch {
            run.metrics.add_seconds(batch);
        }
        Ok(run)
    }

    fn read_metrics(&mut self, path: &Path) -> Result<()> {
        self.metrics = Metrics::read(path)?;
        if self.metrics.is_torn {
            self.notes
                .push("its last line is not whole: it is being written, or was killed".to_string());
        }
        if self.metrics.damaged > 0 {
            let damaged = self.metrics.damaged;
            self.notes.push(format!("{damaged} lines are no metrics"));
        }
        Ok(())
    }

    fn read_folder(&mut self, folder: &RunFolder, most_pictures: usize) {
        match fs::read_to_string(folder.config()) {
            Ok(text) => match configs::flat(&text) {
                Ok(config) => self.config = config,
                Err(what) => self.notes.push(format!("config.toml: {what}")),
            },
            Err(error) => self.notes.push(format!("config.toml: {error}")),
        }
        self.read_checkpoints(folder);
        self.planned = self.steps_planned(folder);
        let found = pictures::find(&folder.images());
        self.all_pictures = found.len();
        for (step, path) in pictures::spread(found, most_pictures) {
            match pictures::load(step, &path) {
                Ok(picture) => self.pictures.push(picture),
                Err(error) => self.notes.push(format!("{error:#}")),
            }
        }
        let starts = bytes_of(&folder.starts()).unwrap_or_default();
        let starts = String::from_utf8_lossy(&starts);
        let starts = starts.lines().map(serde_json::from_str);
        self.starts = starts.filter_map(std::result::Result::ok).collect();
        for path in reports(folder.path(), 2) {
            self.evaluations.extend(evaluations(folder.path(), &path));
        }
    }

    fn read_checkpoints(&mut self, folder: &RunFolder) {
        let latest = folder.latest().ok();
        let entries = fs::read_dir(folder.checkpoints());
        let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
        let mut paths: Vec<PathBuf> = paths
            .filter(|path| crate::store::run::is_checkpoint(path))
            .collect();
        paths.sort();
        for path in &paths {
            let files = fs::read_dir(path).into_iter().flatten().flatten();
            let sizes = files.filter_map(|file| Some(file.metadata().ok()?.len()));
            self.checkpoints.push(Checkpoint {
                name: path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                bytes: sizes.sum(),
                is_latest: latest.as_ref() == Some(path),
            });
        }
        if let Some(latest) = latest {
            let state = bytes_of(&latest.join("state.json"));
            let state = state.and_then(|text| serde_json::from_slice(&text).ok());
            match state {
                Some(state) => self.state = state,
                None => self
                    .notes
                    .push("the state of its newest checkpoint is damaged".to_string()),
            }
        }
    }

    fn steps_planned(&self, folder: &RunFolder) -> Option<u64> {
        let config = Config::read(&folder.config()).ok()?;
        let train = match self.state.get("stage")?.as_str()? {
            "train-gen" => &config.train_gen,
            _ => &config.train_vae,
        };
        Some(train.total_steps(self.state.get("images")?.as_u64()?))
    }

    /// What the newest checkpoint says, else what only one stage logs.
    fn stage_of(&self) -> Option<String> {
        if let Some(stage) = self.state.get("stage").and_then(Value::as_str) {
            return Some(stage.to_string());
        }
        match (self.metrics.has("mse"), self.metrics.has("accuracy_t")) {
            (true, _) => Some("train-vae".to_string()),
            (_, true) => Some("train-gen".to_string()),
            _ => None,
        }
    }

    fn batch_size(&self) -> Option<f64> {
        let key = match self.stage.as_deref() {
            Some("train-gen") => "train_gen.batch_size",
            _ => "train_vae.batch_size",
        };
        self.setting(key)?.parse().ok()
    }

    pub fn setting(&self, key: &str) -> Option<&str> {
        let found = self.config.iter().find(|(own, _)| own == key);
        found.map(|(_, value)| value.as_str())
    }

    /// The last step of which anything is known.
    pub fn step(&self) -> u64 {
        let saved = self.state.get("step").and_then(Value::as_u64).unwrap_or(0);
        let lines = &self.metrics.lines;
        lines.last().map_or(0, |line| line.step).max(saved)
    }

    pub fn is_finished(&self) -> bool {
        self.state.get("finished").and_then(Value::as_bool) == Some(true)
    }
}

/// The bytes of a file, if it is one: a pipe would be waited for.
fn bytes_of(path: &Path) -> Option<Vec<u8>> {
    path.is_file().then(|| fs::read(path).ok()).flatten()
}

/// JSON files in the run's folder, not in those that it writes itself.
fn reports(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let own = ["checkpoints", "images", "tensorboard", "classes.json"];
        let is_link = path.is_symlink();
        if own.contains(&&*name) || is_link {
            continue;
        }
        if path.is_dir() && depth > 1 {
            found.extend(reports(&path, depth - 1));
        } else if path.is_file() && name.ends_with(".json") {
            found.push(path);
        }
    }
    found
}

/// The evaluations in the file at `path`; none if it is something else.
fn evaluations(folder: &Path, path: &Path) -> Vec<Evaluation> {
    let is_small = fs::metadata(path).is_ok_and(|file| file.len() <= LARGEST / 8);
    let text = is_small.then(|| fs::read(path).ok()).flatten();
    let report = text.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let Some(report) = report else {
        return Vec::new();
    };
    let name = path
        .strip_prefix(folder)
        .unwrap_or(path)
        .display()
        .to_string();
    let points = report.get("points").and_then(Value::as_array);
    match points {
        None => evaluation(name, &report).into_iter().collect(),
        Some(points) => (1..)
            .zip(points)
            .filter_map(|(number, point)| {
                let sampling = &point["samples"]["sampling"];
                let told = match sampling["cfg"].as_f64() {
                    Some(guidance) => format!("{name}, guidance {guidance}"),
                    None => format!("{name}, point {number}"),
                };
                evaluation(told, point)
            })
            .collect(),
    }
}

fn evaluation(name: String, report: &Value) -> Option<Evaluation> {
    let metrics = report.get("metrics")?.as_object()?;
    let metrics: Vec<_> = metrics
        .iter()
        .filter_map(|(name, measured)| {
            let value = measured.get("value")?;
            // Others are of each t.
            let is_single = value.is_number() || value.is_null();
            is_single.then_some(())?;
            let interval = measured.get("interval").and_then(|interval| {
                let low = interval.get(0)?.as_f64()?;
                Some([low, interval.get(1)?.as_f64()?])
            });
            Some((name.clone(), value.as_f64(), interval))
        })
        .collect();
    (!metrics.is_empty()).then(|| Evaluation {
        name,
        images: report["samples"]["images"].as_u64(),
        metrics,
    })
}
