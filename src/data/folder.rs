//! The files of a folder and all folders below it. Links are followed, but not in circles.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::image_kind::{ENDINGS, is_image_name};
use super::part::{Found, Kind, Label, Listed, Part, Place, Tally};
use super::paths::Named;
use super::selection::{hides, is_other, printable, select};
use super::shards::{is_shard_name, shard_ending};
use crate::error::{Context, Result, hinted};

/// Finds the images of the folder `root`, sorted by name within every folder.
///
/// With `skip_bad`, an image behind a broken link is reported and left out instead of an error.
pub(super) fn scan(root: &Path, skip_bad: bool) -> Result<Part> {
    let mut part = Part::new(root.to_path_buf(), Kind::Folder);
    let mut walk = Walk {
        skip_bad,
        around: Vec::new(),
        files: Vec::new(),
        folders: Vec::new(),
        broken: Vec::new(),
        part: &mut part,
    };
    let metadata = fs::metadata(root).with_context(|| listing(root))?;
    walk.folder(root, "", &metadata)?;
    let Walk {
        files,
        folders,
        broken,
        ..
    } = walk;
    part.bad = broken.len();
    select(files, folders, &broken, &mut part, &mut reader(root));
    if part.found.is_empty() {
        let shards = part
            .passed
            .kinds
            .iter()
            .find(|(kind, _)| is_shard_name(kind));
        let hint = match shards {
            Some((_, shard)) => format!(
                "it holds tar shards (`{}`, ...): name them, for example as '{}/*.tar*'",
                shard.first,
                root.display()
            ),
            None => format!("images end in {ENDINGS}, and lie in one folder a class"),
        };
        return Err(hinted(
            format!(
                "{}: no images in this folder{}",
                root.display(),
                part.instead()
            ),
            hint,
        ));
    }
    Ok(part)
}

/// Finds those of the images of the folder `root` that are named, and of those that patterns match
/// what is data.
pub(super) fn scan_images(root: &Path, images: &BTreeSet<(OsString, Named)>) -> Result<Part> {
    let mut part = Part::new(root.to_path_buf(), Kind::Image);
    let listed = |name: &OsString| {
        let printed = printable(name.as_bytes());
        let place = match printed == *name.to_string_lossy() && name.to_str().is_some() {
            true => Place::File,
            false => Place::Unprintable(root.join(name).into()),
        };
        Listed {
            name: printed,
            place,
            archive: 0,
        }
    };
    let matched = |name: &OsString| images.contains(&(name.clone(), Named::ByPattern));
    if images.iter().any(|(_, named)| *named == Named::ByPattern) {
        let folder = if root.as_os_str().is_empty() {
            Path::new(".")
        } else {
            root
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| listing(folder))? {
            let name = entry.with_context(|| listing(folder))?.file_name();
            let other = is_other(&name.to_string_lossy()) && !hides(&name.to_string_lossy());
            if matched(&name) || other {
                files.push(listed(&name));
            }
        }
        // Images are found in the order of their names.
        files.sort_by(|a, b| a.name.cmp(&b.name));
        select(files, Vec::new(), &[], &mut part, &mut reader(root));
        // Labels of images that no pattern matches.
        part.passed.strays = Tally::default();
    }
    for (name, _) in images.iter().filter(|(_, named)| *named == Named::ByItself) {
        let Listed { name, place, .. } = listed(name);
        part.found.push(Found {
            name,
            label: Label::None,
            class: None,
            place,
        });
    }
    part.found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(part)
}

/// Reads files of the folder `root`.
fn reader(root: &Path) -> impl FnMut(&Listed, u64) -> std::io::Result<Vec<u8>> {
    |file, limit| {
        let path = match &file.place {
            Place::Unprintable(path) => path.to_path_buf(),
            _ => root.join(&file.name),
        };
        let mut bytes = Vec::new();
        File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn listing(folder: &Path) -> String {
    format!("could not list the folder {}", folder.display())
}

struct Walk<'a> {
    skip_bad: bool,
    /// Device and number of the folders that the walk is in.
    around: Vec<(u64, u64)>,
    files: Vec<Listed>,
    folders: Vec<String>,
    /// Images that links name and nobody finds.
    broken: Vec<String>,
    part: &'a mut Part,
}

impl Walk<'_> {
    /// Lists the folder at `path`, called `name`: its files, then the folders in it, each sorted.
    fn folder(&mut self, path: &Path, name: &str, metadata: &Metadata) -> Result<()> {
        let itself = (metadata.dev(), metadata.ino());
        if self.around.contains(&itself) {
            let target = path.canonicalize().unwrap_or_default();
            return Err(hinted(
                format!(
                    "{}: the link leads back to {}",
                    path.display(),
                    target.display()
                ),
                "remove the link",
            ));
        }
        self.around.push(itself);
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(path).with_context(|| listing(path))? {
            let entry = entry.with_context(|| listing(path))?;
            let own = printable(entry.file_name().as_bytes());
            if hides(&own) {
                continue;
            }
            let printed = match name.is_empty() {
                true => own,
                false => format!("{name}/{own}"),
            };
            let kind = entry.file_type().with_context(|| listing(path))?;
            if kind.is_file() {
                files.push((printed, entry.path()));
            } else if kind.is_dir() || kind.is_symlink() {
                match fs::metadata(entry.path()) {
                    // A pipe or a device would keep its reader waiting.
                    Ok(target) if target.is_file() => files.push((printed, entry.path())),
                    Ok(target) if target.is_dir() => folders.push((printed, entry.path(), target)),
                    Ok(_) => {}
                    Err(e) => self.broken(printed, &entry.path(), &e)?,
                }
            }
        }
        files.sort();
        folders.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, path) in files {
            if let Some(ending) = shard_ending(&name) {
                let kinds = &mut self.part.passed.kinds;
                kinds.entry(ending.to_string()).or_default().add(|| name);
                continue;
            }
            let as_printed = path.strip_prefix(&self.part.path).ok().map(Path::as_os_str);
            let place = match as_printed.is_some_and(|own| own == name.as_str()) {
                true => Place::File,
                false => Place::Unprintable(path.into()),
            };
            let archive = 0;
            self.files.push(Listed {
                name,
                place,
                archive,
            });
        }
        for (name, path, metadata) in folders {
            self.folders.push(name.clone());
            self.folder(&path, &name, &metadata)?;
        }
        self.around.pop();
        Ok(())
    }

    /// Takes in a link that cannot be followed: an image of the set, or a folder that may have been
    /// a class.
    fn broken(&mut self, name: String, path: &Path, error: &std::io::Error) -> Result<()> {
        let target = fs::read_link(path).unwrap_or_default();
        let message = format!(
            "{}: a broken link to {} ({error})",
            path.display(),
            target.display()
        );
        if is_image_name(&name) {
            if !self.skip_bad {
                return Err(hinted(
                    message,
                    "mend or remove the link, or leave bad images out with --skip-bad-images",
                ));
            }
            tracing::warn!("{message}");
            self.broken.push(name);
        } else if !name.rsplit('/').next().unwrap_or_default().contains('.') {
            self.part.passed.links.add(|| name);
        }
        Ok(())
    }
}
