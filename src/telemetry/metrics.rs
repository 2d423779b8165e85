//! `metrics.jsonl`: one JSON object per logged step, `step` first, appended and flushed at once.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Result, hinted};

/// The open metrics file of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    /// Length of all complete lines in bytes. A failed write may have left part of the next line.
    whole: u64,
    torn: bool,
}

impl MetricsLog {
    /// Opens `path`, creating it if needed. With `resume_after`, lines of later steps are cut off,
    /// so that a resumed run logs no step twice. An incomplete last line, left by a killed process,
    /// is removed too.
    pub fn open(path: &Path, resume_after: Option<u64>) -> Result<Self> {
        let failed =
            |e: std::io::Error| hinted(format!("cannot write {}: {e}", path.display()), "");
        let mut options = File::options();
        options.create(true).append(true);
        let file = match resume_after {
            None => {
                File::create(path).map_err(failed)?;
                options.open(path).map_err(failed)?
            }
            Some(step) => {
                let file = options.open(path).map_err(failed)?;
                let text = fs::read(path).map_err(failed)?;
                file.set_len(kept(&text, step) as u64).map_err(failed)?;
                file
            }
        };
        Ok(Self {
            path: path.to_path_buf(),
            whole: file.metadata().map_err(failed)?.len(),
            file,
            torn: false,
        })
    }

    /// Appends the metrics of `step`; numbers that are not finite become null. First cuts off the
    /// partial line of a failed write, if any.
    pub fn append(&mut self, step: u64, metrics: Map<String, Value>) -> Result<()> {
        let mut line = Map::from_iter([("step".to_string(), json!(step))]);
        line.extend(metrics);
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        // A single unbuffered write.
        let written = match self.torn {
            true => self.file.set_len(self.whole),
            false => Ok(()),
        }
        .and_then(|()| self.file.write_all(text.as_bytes()));
        self.torn = written.is_err();
        match written {
            Ok(()) => {
                self.whole += text.len() as u64;
                Ok(())
            }
            Err(e) => {
                let failed = format!("cannot write {}: {e}", self.path.display());
                Err(hinted(failed, ""))
            }
        }
    }

    /// Syncs the file, so that appended lines survive a power failure.
    pub fn sync(&mut self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| hinted(format!("cannot write {}: {e}", self.path.display()), ""))
    }

    /// All complete lines of a metrics file.
    pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
        let text = fs::read_to_string(path)
            .map_err(|e| hinted(format!("cannot read {}: {e}", path.display()), ""))?;
        Ok(text
            .lines()
            .map_while(|line| serde_json::from_str(line).ok())
            .collect())
    }
}

/// Length of `text` in bytes up to the last complete line of a step ≤ `last`.
fn kept(text: &[u8], last: u64) -> usize {
    text.split_inclusive(|b| *b == b'\n')
        .take_while(|line| {
            let step = serde_json::from_slice::<Value>(line)
                .ok()
                .and_then(|line| line.get("step")?.as_u64());
            line.ends_with(b"\n") && step.is_some_and(|step| step <= last)
        })
        .map(<[u8]>::len)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(loss: f64) -> Map<String, Value> {
        Map::from_iter([("loss".to_string(), json!(loss))])
    }

    #[test]
    fn a_resumed_run_logs_no_step_twice() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, None)?;
        for step in [10, 20, 30] {
            log.append(step, metrics(step as f64))?;
        }
        let whole = fs::read_to_string(&path)?;
        fs::write(&path, format!("{whole}{{\"step\": 40, \"lo"))?;
        let mut log = MetricsLog::open(&path, Some(20))?;
        log.append(30, metrics(30.0))?;
        assert_eq!(fs::read_to_string(&path)?, whole);
        assert_eq!(MetricsLog::read(&path)?.len(), 3);
        Ok(())
    }

    #[test]
    fn a_line_that_could_not_be_written_whole_spoils_no_later_one() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, None)?;
        log.append(10, metrics(1.0))?;
        // Simulates a disk that fills in the middle of a line: the file takes the beginning of the
        // line and then nothing.
        let good = std::mem::replace(&mut log.file, File::open("/dev/null")?);
        assert!(log.append(20, metrics(2.0)).is_err());
        log.file = good;
        log.file.write_all(b"{\"step\":20,\"lo")?;
        log.append(30, metrics(3.0))?;
        log.append(40, metrics(4.0))?;
        let lines = MetricsLog::read(&path)?;
        let steps: Vec<&Value> = lines.iter().map(|line| &line["step"]).collect();
        assert_eq!(steps, [10, 30, 40]);
        Ok(())
    }

    #[test]
    fn an_unfinished_line_goes_even_behind_the_last_step() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":10}\n{\"step\":20")?;
        MetricsLog::open(&path, Some(50))?;
        assert_eq!(fs::read_to_string(&path)?, "{\"step\":10}\n");
        Ok(())
    }

    #[test]
    fn a_figure_that_is_not_finite_is_null() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("metrics.jsonl");
        MetricsLog::open(&path, None)?.append(1, metrics(f64::NAN))?;
        assert_eq!(fs::read_to_string(&path)?, "{\"step\":1,\"loss\":null}\n");
        Ok(())
    }
}
