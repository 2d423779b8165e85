//! The sheets of images that a run wrote, for the page.

use std::fs;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine};

use crate::data::decode;
use crate::data::resize::{Filter, resize};
use crate::error::{Context, Result};
use crate::sample;

/// Pixels of the longer side in the page; larger sheets are scaled down.
const LONGEST: u32 = 1280;

#[derive(Debug)]
pub(super) struct Picture {
    pub step: u64,
    pub width: u32,
    pub height: u32,
    /// A PNG as a data: address.
    pub address: String,
}

/// Steps and paths of a run's sheets, by step.
pub(super) fn find(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let name = path.file_name()?.to_str()?;
            let step = name.strip_prefix("step-")?.strip_suffix(".png")?;
            // What is a pipe would be waited for.
            path.is_file().then_some((step.parse().ok()?, path))
        })
        .collect();
    found.sort();
    found
}

/// `most` of them, evenly spread, the first and the last among them.
pub(super) fn spread<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let count = all.len();
    if count <= most {
        return all;
    }
    let is_kept = |at: usize| match most {
        0 => false,
        1 => at == count - 1,
        _ => (0..most).any(|i| (i * (count - 1) + (most - 1) / 2) / (most - 1) == at),
    };
    let numbered = all.into_iter().enumerate();
    let kept = numbered.filter(|(at, _)| is_kept(*at));
    kept.map(|(_, one)| one).collect()
}

/// Errors: it is no image.
pub(super) fn load(step: u64, path: &Path) -> Result<Picture> {
    let name = path.display();
    let bytes = fs::read(path).with_context(|| format!("cannot read {name}"))?;
    let picture = decode(&bytes, &name.to_string())?;
    let (width, height) = picture.dimensions();
    let longer = width.max(height);
    let is_png = bytes.starts_with(b"\x89PNG");
    let (png, width, height) = match longer <= LONGEST && is_png {
        true => (bytes, width, height),
        false => {
            let scale = |side: u32| {
                let scaled = u64::from(side) * u64::from(LONGEST.min(longer)) / u64::from(longer);
                (scaled as u32).max(1)
            };
            let (width, height) = (scale(width), scale(height));
            let smaller = resize(&picture, width, height, Filter::Lanczos);
            (sample::png(&smaller)?, width, height)
        }
    };
    Ok(Picture {
        step,
        width,
        height,
        address: format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_are_among_the_spread() {
        let all: Vec<usize> = (0..100).collect();
        for most in 2..40 {
            let kept = spread(all.clone(), most);
            assert_eq!((kept[0], kept[kept.len() - 1], kept.len()), (0, 99, most));
        }
        assert_eq!(spread(all.clone(), 1), [99]);
        assert!(spread(all.clone(), 0).is_empty());
        assert_eq!(spread(vec![1, 2], 12), [1, 2]);
    }
}
