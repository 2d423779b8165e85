//! `--part I/N`: a share of a command's work, for jobs whose processes nothing connects.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Context, Result, hinted};

/// Of all pieces of work, those whose number is `index` modulo `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub index: usize,
    pub count: usize,
}

impl Default for Part {
    /// All.
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            Some((index, count)) if count > 0 => Err(format!(
                "part {index} of {count}: parts count from 0, the last is {}/{count}",
                count - 1
            )),
            _ => Err("expected two numbers, such as 0/4: the first of four parts".to_string()),
        }
    }
}

impl Part {
    /// The name of its file or folder.
    pub fn name(self, ending: &str) -> String {
        format!("part-{}-of-{}{ending}", self.index, self.count)
    }

    /// All parts of the division that lies in `folder`, under the names of [`Part::name`]; none if
    /// none of them is there.
    ///
    /// Errors: parts of two divisions.
    pub fn all_in(folder: &Path, ending: &str) -> Result<Vec<Part>> {
        let listing = || format!("could not list the folder {}", folder.display());
        let mut counts = Vec::new();
        if folder.is_dir() {
            for entry in fs::read_dir(folder).with_context(listing)? {
                let name = entry.with_context(listing)?.file_name();
                let name = name.to_string_lossy();
                let numbers = name.strip_prefix("part-");
                let numbers = numbers.and_then(|n| n.strip_suffix(ending)?.split_once("-of-"));
                let part = numbers.and_then(|(i, n)| format!("{i}/{n}").parse::<Part>().ok());
                counts.extend(part.map(|part| part.count));
            }
        }
        counts.sort_unstable();
        counts.dedup();
        match counts[..] {
            [] => Ok(Vec::new()),
            [count] => Ok((0..count).map(|index| Part { index, count }).collect()),
            [one, other, ..] => Err(hinted(
                format!(
                    "{} holds parts of {one} and parts of {other}",
                    folder.display()
                ),
                "remove those of one division",
            )),
        }
    }

    /// The numbers of its pieces, of `all`.
    pub fn of(self, all: usize) -> impl Iterator<Item = usize> + use<> {
        (self.index..all).step_by(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_count_from_0_and_share_everything() {
        let part = |text: &str| text.parse::<Part>();
        let pieces = |text: &str| part(text).map(|part| part.of(7).collect::<Vec<_>>());
        assert_eq!(pieces("0/3"), Ok(vec![0, 3, 6]));
        assert_eq!(pieces("2/3"), Ok(vec![2, 5]));
        assert_eq!(pieces("0/1"), Ok((0..7).collect()));
        for (text, why) in [("3/3", "the last is 2/3"), ("5/4", "the last is 3/4")] {
            assert!(part(text).unwrap_err().contains(why), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let all = || Part::all_in(folder.path(), ".x");
        for name in [
            "part-1-of-3.y",
            "part-3-of-3.x",
            ".part-1-of-3.x",
            "part-1.x",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(all().unwrap(), []);
        fs::write(folder.path().join("part-1-of-3.x"), "").unwrap();
        let parts = ["0/3", "1/3", "2/3"].map(|text| part(text).unwrap());
        assert_eq!(all().unwrap(), parts);
        assert_eq!(parts[1].name(".x"), "part-1-of-3.x");
        fs::write(folder.path().join("part-0-of-2.x"), "").unwrap();
        let error = all().unwrap_err().to_string();
        assert!(error.contains("parts of 2 and parts of 3"), "{error}");
        for text in ["0/0", "1", "a/b", "-1/2", "1/", ""] {
            assert!(part(text).unwrap_err().contains("such as 0/4"), "{text}");
        }
    }
}
