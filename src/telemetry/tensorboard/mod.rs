//! TensorBoard's event files of a run: `RUN/tensorboard/events.out.tfevents.…`, beside
//! `metrics.jsonl` and of the same values.
//!
//! Every start of a run has a file of its own. Its first events are the format's version and, where
//! there are files of earlier starts, a mark that voids what these say of the steps from here on:
//! curves of a resumed run have no step twice. A curve over t has a tag for each t.

mod message;
mod record;

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use image::ImageDecoder;
use image::codecs::png::PngDecoder;
use serde_json::{Map, Value};

use self::message::Message;
use crate::error::{Context, Result, hinted};
use crate::store::run::unix_seconds;

/// What the names of event files begin with; the time follows, by which they are ordered.
const PREFIX: &str = "events.out.tfevents.";

/// The open event file of this process.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
    /// Length of all complete records in bytes: a failed write may have left part of the next.
    whole: u64,
}

impl EventLog {
    /// A new file in `folder` for the steps from `next` on; `config` is shown as a text.
    pub fn create(folder: &Path, next: u64, config: &str) -> Result<Self> {
        let failed =
            |e: std::io::Error| hinted(format!("cannot write {}: {e}", folder.display()), "");
        fs::create_dir_all(folder).map_err(failed)?;
        let last = last_time(folder).map_err(failed)?;
        // A clock that was set back must not bring this file before the earlier ones.
        let time = last.map_or(0, |last| last + 1).max(now() as u64);
        let path = folder.join(format!("{PREFIX}{time:010}.{}.rdpm", std::process::id()));
        let options = File::options().append(true).create_new(true).open(&path);
        let mut log = Self {
            file: options.map_err(failed)?,
            path,
            whole: 0,
        };
        let mut events = vec![message::version(now())];
        if last.is_some() {
            events.push(message::restart(now(), next));
        }
        let config = message::text("config", &format!("```toml\n{config}\n```"));
        events.push(message::event(now(), next).message(5, &summary([config])));
        log.write(events)?;
        Ok(log)
    }

    /// Appends a log line, and the picture of its step.
    pub fn append(
        &mut self,
        step: u64,
        metrics: &Map<String, Value>,
        picture: Option<&Path>,
    ) -> Result<()> {
        let mut values: Vec<Message> = metrics
            .iter()
            .flat_map(|(name, value)| scalars(name, value))
            .collect();
        if let Some(path) = picture {
            let png = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let size = PngDecoder::new(Cursor::new(png.as_slice()))?.dimensions();
            values.push(message::picture("images", size, &png));
        }
        let event = message::event(now(), step).message(5, &summary(values));
        self.write(vec![event])
    }

    fn write(&mut self, events: Vec<Message>) -> Result<()> {
        let mut bytes = Vec::new();
        for event in events {
            record::put(&mut bytes, &event.finish());
        }
        // Readers stop at a record that is not whole.
        let torn = self.file.metadata().map(|file| file.len() != self.whole);
        let written = match torn.unwrap_or(false) {
            true => self.file.set_len(self.whole),
            false => Ok(()),
        }
        .and_then(|()| self.file.write_all(&bytes));
        written.map_err(|e| hinted(format!("cannot write {}: {e}", self.path.display()), ""))?;
        self.whole += bytes.len() as u64;
        Ok(())
    }
}

fn summary(values: impl IntoIterator<Item = Message>) -> Message {
    let all = values.into_iter();
    all.fold(Message::default(), |summary, value| {
        summary.message(1, &value)
    })
}

/// The curves' values of a metric; what is not finite is NaN.
fn scalars(name: &str, value: &Value) -> Vec<Message> {
    let float = |value: &Value| match value {
        Value::Null => Some(f32::NAN),
        value => value.as_f64().map(|value| value as f32),
    };
    match value {
        Value::Array(curve) => {
            // Sorted by name they are sorted by t.
            let digits = curve.len().to_string().len();
            let tagged = (1..).zip(curve).filter_map(|(t, value)| {
                let tag = format!("{name}/{t:0digits$}");
                Some(message::scalar(&tag, float(value)?))
            });
            tagged.collect()
        }
        value => {
            let tag = format!("train/{name}");
            let one = float(value).map(|value| message::scalar(&tag, value));
            one.into_iter().collect()
        }
    }
}

/// The time in the name of the last event file of `folder`.
fn last_time(folder: &Path) -> std::io::Result<Option<u64>> {
    let mut last = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let time = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let time = time.and_then(|rest| rest.split('.').next()?.parse().ok());
        last = last.max(time);
    }
    Ok(last)
}

fn now() -> f64 {
    unix_seconds(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
        files.sort();
        files
    }

    fn line(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn holds(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn a_line_is_one_record_with_a_tag_for_each_t() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut log = EventLog::create(folder.path(), 1, "[data]")?;
        let curve = json!({"loss": 0.5, "bad": null, "used_t": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]});
        log.append(10, &line(curve), None)?;
        let [file] = &files(folder.path())[..] else {
            panic!("one file");
        };
        let records = record::tests::read(&fs::read(file)?);
        assert_eq!(records.len(), 3);
        assert!(holds(&records[0], b"brain.Event:2") && holds(&records[1], b"[data]"));
        for tag in ["train/loss", "train/bad", "used_t/01", "used_t/10"] {
            assert!(holds(&records[2], tag.as_bytes()), "{tag}");
        }
        assert!(holds(&records[2], &f32::NAN.to_le_bytes()));
        Ok(())
    }

    #[test]
    fn a_later_start_has_a_later_file_that_voids_its_steps() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for (start, next) in [(1, 1), (2, 21), (3, 300)] {
            EventLog::create(folder.path(), next, "")?;
            assert_eq!(files(folder.path()).len(), start);
        }
        // A clock that is set back.
        fs::write(folder.path().join(format!("{PREFIX}5000000000.a")), "")?;
        EventLog::create(folder.path(), 7, "")?;
        let last = files(folder.path()).into_iter().next_back().expect("five");
        let name = last.file_name().and_then(|n| n.to_str()).expect("UTF-8");
        assert!(name.starts_with(&format!("{PREFIX}5000000001.")), "{name}");
        let marks: Vec<bool> = files(folder.path())
            .iter()
            .map(|path| {
                let records = record::tests::read(&fs::read(path).expect("a file"));
                records
                    .iter()
                    .any(|record| holds(record, b"\x3a\x02\x08\x01"))
            })
            .collect();
        assert_eq!(marks.iter().filter(|mark| **mark).count(), 3);
        Ok(())
    }

    #[test]
    fn a_record_that_could_not_be_written_whole_spoils_no_later_one() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut log = EventLog::create(folder.path(), 1, "")?;
        log.append(10, &line(json!({"loss": 1.0})), None)?;
        let good = std::mem::replace(&mut log.file, File::open("/dev/null")?);
        assert!(log.append(20, &line(json!({"loss": 2.0})), None).is_err());
        log.file = good;
        log.file.write_all(b"\x20\0\0")?;
        log.append(30, &line(json!({"loss": 3.0})), None)?;
        let records = record::tests::read(&fs::read(&log.path)?);
        assert_eq!(records.len(), 4);
        Ok(())
    }
}
