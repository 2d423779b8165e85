//! Features of samples on disk as they are made, so that an interrupted evaluation goes on where it stopped.
//!
//! A folder: `identity.json` (what the samples and networks are), and a file of f32 rows a tap. Rows are appended a
//! batch at a time; after an interruption the images whose rows are whole in every file are known.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::features::Rows;
use crate::error::{Context, Result, hinted};
use crate::store::atomic;

pub struct FeatureLog {
    folder: PathBuf,
    files: Vec<File>,
    widths: Vec<usize>,
    count: usize,
}

impl FeatureLog {
    /// Opens or makes the log in `folder`.
    ///
    /// Errors: the folder is the log of something else.
    pub fn open(folder: &Path, identity: &Value, widths: &[usize]) -> Result<Self> {
        let failed = || format!("cannot use the folder {}", folder.display());
        fs::create_dir_all(folder).with_context(failed)?;
        let path = folder.join("identity.json");
        let text = serde_json::to_string_pretty(identity)?;
        match fs::read_to_string(&path) {
            Ok(found) if found == text => {}
            Ok(_) => {
                return Err(hinted(
                    format!("{}: features of another evaluation", folder.display()),
                    "name another folder with --work, or remove it",
                ));
            }
            Err(_) => atomic::write_file(&path, text.as_bytes())?,
        }
        let open = |i: usize| {
            let path = folder.join(format!("features-{i}.f32"));
            let options = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(&path);
            options.with_context(|| format!("cannot open {}", path.display()))
        };
        let files = (0..widths.len()).map(open).collect::<Result<Vec<_>>>()?;
        let mut count = usize::MAX;
        for (file, width) in files.iter().zip(widths) {
            let bytes = file.metadata().with_context(failed)?.len() as usize;
            count = count.min(bytes / (4 * width));
        }
        for (file, width) in files.iter().zip(widths) {
            file.set_len((count * 4 * width) as u64)
                .with_context(failed)?;
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            files,
            widths: widths.to_vec(),
            count,
        })
    }

    /// Images whose features are known.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds a batch: a matrix a tap.
    pub fn append(&mut self, features: &[Rows]) -> Result<()> {
        for (file, rows) in self.files.iter_mut().zip(features) {
            let bytes: Vec<u8> = rows.values.iter().flat_map(|x| x.to_le_bytes()).collect();
            file.write_all(&bytes)
                .with_context(|| format!("cannot write to {}", self.folder.display()))?;
        }
        self.count += features.first().map_or(0, Rows::count);
        Ok(())
    }

    /// Hands all that is known to `take`, `batch` images at a time, a matrix a tap.
    pub fn replay(
        &mut self,
        batch: usize,
        mut take: impl FnMut(&[Rows]) -> Result<()>,
    ) -> Result<()> {
        let failed = |folder: &Path| format!("cannot read {}", folder.display());
        for file in &mut self.files {
            file.seek(SeekFrom::Start(0))
                .with_context(|| failed(&self.folder))?;
        }
        for start in (0..self.count).step_by(batch) {
            let count = batch.min(self.count - start);
            let mut features = Vec::with_capacity(self.files.len());
            for (file, &width) in self.files.iter_mut().zip(&self.widths) {
                let mut bytes = vec![0; count * width * 4];
                file.read_exact(&mut bytes)
                    .with_context(|| failed(&self.folder))?;
                let (values, _) = bytes.as_chunks::<4>();
                let values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
                features.push(Rows { width, values });
            }
            take(&features)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn batch(first: usize, count: usize) -> Vec<Rows> {
        let rows = |width: usize| Rows {
            width,
            values: (first * width..(first + count) * width)
                .map(|x| x as f32)
                .collect(),
        };
        vec![rows(2), rows(3)]
    }

    #[test]
    fn what_is_whole_in_every_file_is_known_after_an_interruption() -> Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("work");
        let identity = json!({"seed": 1});
        let mut log = FeatureLog::open(&folder, &identity, &[2, 3])?;
        log.append(&batch(0, 4))?;
        log.append(&batch(4, 4))?;
        drop(log);
        // Killed while the second file was written.
        let second = OpenOptions::new()
            .write(true)
            .open(folder.join("features-1.f32"))?;
        second.set_len(6 * 12 + 5)?;
        let mut log = FeatureLog::open(&folder, &identity, &[2, 3])?;
        assert_eq!(log.count(), 6);
        log.append(&batch(6, 2))?;
        let mut seen = 0;
        log.replay(3, |features| {
            let count = features[0].count();
            assert_eq!(features, batch(seen, count));
            seen += count;
            Ok(())
        })?;
        assert_eq!(seen, 8);
        let other = FeatureLog::open(&folder, &json!({"seed": 2}), &[2, 3]);
        assert!(
            other
                .err()
                .is_some_and(|e| e.to_string().contains("another evaluation"))
        );
        Ok(())
    }
}
