//! The files of a folder and all folders below it. Links are followed, but not in circles.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirEntry, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::image_kind::{ENDINGS, is_image_name};
use super::part::{Kind, Label, Listed, Part, Place, UNKNOWN};
use super::paths::Named;
use super::selection::{
    Rest, bare, hides, is_hidden_image, key, may_be_field, printable, select, take,
};
use super::shards::is_shard_name;
use super::stamp::{Moment, Stamp};
use super::transient::patiently;
use crate::error::{Context, Result, hinted};

/// Entries of a folder that one thread looks at before another may help.
const CHUNK: usize = 2048;

/// Entries of a hidden folder that are looked at.
const HIDDEN_ENTRIES: usize = 1000;

/// Finds the images of the folder `root`, sorted by name within every folder.
///
/// With `skip_bad`, an image behind a broken link is reported and left out instead of an error.
pub(super) fn scan(root: &Path, skip_bad: bool) -> Result<Part> {
    let (walk, looked) = (Walk { root, skip_bad }, Moment::now());
    let first = Folder {
        path: root.to_path_buf(),
        name: String::new(),
        is_as_printed: true,
        around: Vec::new(),
    };
    let (mut level, mut all) = (vec![first], Vec::new());
    while !level.is_empty() {
        let walked: Vec<_> = level.par_iter().map(|folder| walk.folder(folder)).collect();
        level = Vec::new();
        for walked in walked {
            let (walked, below) = walked?;
            all.push(walked);
            level.extend(below);
        }
    }
    // As if each folder were followed by what is in it.
    all.sort_by(|a, b| a.name.split('/').cmp(b.name.split('/')));
    let mut part = Part::new(root.to_path_buf(), Kind::Folder);
    part.looked = Some(looked);
    let (mut folders, mut rest) = (Vec::new(), Rest::default());
    for walked in all {
        part.merge(walked.part);
        rest.merge(walked.rest);
        if !walked.name.is_empty() {
            folders.push(walked.name);
        }
    }
    part.bare = bare(folders, &rest, &part.found);
    if part.found.is_empty() {
        let hint = match part.passed.kinds.first(is_shard_name) {
            Some(shard) => format!(
                "it holds tar shards (`{shard}`, ...): name them, for example as '{}/*.tar*'",
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
            true => Place::File { size: UNKNOWN },
            false => Place::Unprintable {
                path: root.join(name).into(),
                size: UNKNOWN,
            },
        };
        Listed {
            name: printed,
            place,
            archive: 0,
        }
    };
    let matched = |name: &OsString| images.contains(&(name.clone(), Named::ByPattern));
    let by_pattern = images
        .iter()
        .filter(|(_, named)| *named == Named::ByPattern);
    let printed = by_pattern.map(|(name, _)| printable(name.as_bytes()));
    let keys: BTreeSet<String> = printed.map(|name| key(&name).to_string()).collect();
    if !keys.is_empty() {
        let folder = if root.as_os_str().is_empty() {
            Path::new(".")
        } else {
            root
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| listing(folder))? {
            let name = entry.with_context(|| listing(folder))?.file_name();
            let printed = printable(name.as_bytes());
            let is_field = || may_be_field(&printed) && keys.contains(key(&printed));
            if matched(&name) || is_field() {
                files.push(listed(&name));
            }
        }
        // Images are found in the order of their names.
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let mut read = |file: &Listed, limit| Ok(read(root, file, limit)?.0);
        select(files, Vec::new(), &[], &mut part, &mut read);
    }
    for (name, _) in images.iter().filter(|(_, named)| *named == Named::ByItself) {
        let Listed { name, place, .. } = listed(name);
        part.found.push(&name, Label::None, place);
    }
    part.found.sort();
    Ok(part)
}

/// Reads at most so many bytes, and one more, of a file of the folder `root`; its stamp tells when
/// they change.
fn read(root: &Path, file: &Listed, limit: u64) -> io::Result<(Vec<u8>, Stamp)> {
    let path = match &file.place {
        Place::Unprintable { path, .. } => path.to_path_buf(),
        _ => root.join(&file.name),
    };
    patiently(&path.display(), || {
        let file = File::open(&path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes)?;
        Ok((bytes, stamp))
    })
}

fn listing(folder: &Path) -> String {
    format!("could not list the folder {}", folder.display())
}

/// The images in a hidden entry of a folder, which is called `name`: those among its first
/// [`HIDDEN_ENTRIES`], for it may hold copies of the whole set.
fn hidden_images(entry: &DirEntry, name: String) -> Vec<String> {
    let is_folder = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let mut folders = Vec::new();
    let mut images = Vec::new();
    let mut sort = |entry: &DirEntry, name: String| match is_folder(entry) {
        true => Some((entry.path(), name)),
        false => {
            images.extend(Some(name).filter(|name| is_hidden_image(name)));
            None
        }
    };
    folders.extend(sort(entry, name));
    let mut left = HIDDEN_ENTRIES;
    while let Some((path, name)) = folders.pop() {
        // What cannot be listed there would not be read anyway.
        let listed = fs::read_dir(path).into_iter().flatten().flatten();
        for entry in listed.take(left) {
            let own = printable(entry.file_name().as_bytes());
            folders.extend(sort(&entry, format!("{name}/{own}")));
            left -= 1;
        }
    }
    images
}

struct Walk<'a> {
    root: &'a Path,
    skip_bad: bool,
}

/// A folder to be listed.
struct Folder {
    path: PathBuf,
    /// Relative to the walk's root, as it is printed.
    name: String,
    /// Whether the system calls it that.
    is_as_printed: bool,
    /// Device and number of the folders that it is in.
    around: Vec<(u64, u64)>,
}

/// What a folder holds itself.
struct Walked {
    name: String,
    part: Part,
    rest: Rest,
}

/// What a folder lists.
#[derive(Default)]
struct Entries {
    files: Vec<Listed>,
    /// With whether the system calls them that.
    folders: Vec<(String, PathBuf, bool)>,
    /// Images that links name and nobody finds.
    broken: Vec<String>,
    /// Images that are hidden, or below hidden folders.
    hidden: Vec<String>,
}

impl Walk<'_> {
    /// Lists a folder: what its files are, and the folders in it, each sorted.
    fn folder(&self, folder: &Folder) -> Result<(Walked, Vec<Folder>)> {
        let Folder {
            path, name, around, ..
        } = folder;
        let mut part = Part::new(self.root.to_path_buf(), Kind::Folder);
        let metadata = patiently(&path.display(), || fs::metadata(path));
        let metadata = metadata.with_context(|| listing(path))?;
        let itself = (metadata.dev(), metadata.ino());
        if around.contains(&itself) {
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
        part.unprintable = !folder.is_as_printed;
        // What changes from here on changes the folder's time.
        let stamp = Stamp::of(&metadata);
        part.found_in.push((name.as_str().into(), stamp));
        let Entries {
            mut files,
            mut folders,
            broken,
            mut hidden,
        } = self.entries(folder, &mut part)?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        folders.sort();
        hidden.sort();
        for name in hidden {
            part.passed.hidden.add(|| name);
        }
        part.bad = broken.len();
        let (mut rest, mut fields) = (Rest::default(), Vec::new());
        let mut unprintable = false;
        let mut read = |file: &Listed, limit| {
            let (bytes, stamp) = read(self.root, file, limit)?;
            unprintable |= matches!(file.place, Place::Unprintable { .. });
            fields.push((file.name.as_str().into(), stamp));
            Ok(bytes)
        };
        take(files, &broken, &mut part, &mut rest, &mut read);
        part.fields = fields;
        part.found.shrink();
        part.unprintable |= unprintable;
        let below = folders
            .into_iter()
            .map(|(name, path, is_as_printed)| Folder {
                path,
                name,
                is_as_printed,
                around: around.iter().copied().chain([itself]).collect(),
            });
        let below = below.collect();
        let name = name.clone();
        Ok((Walked { name, part, rest }, below))
    }

    fn entries(&self, folder: &Folder, part: &mut Part) -> Result<Entries> {
        let path = &folder.path;
        let listed = patiently(&path.display(), || {
            fs::read_dir(path)?.collect::<io::Result<Vec<DirEntry>>>()
        });
        let listed = listed.with_context(|| listing(path))?;
        let looked: Vec<Result<Entries>> = listed
            .par_chunks(CHUNK)
            .map(|entries| {
                let mut found = Entries::default();
                for entry in entries {
                    self.entry(folder, entry, &mut found)?;
                }
                Ok(found)
            })
            .collect();
        let mut all = Entries::default();
        for found in looked {
            let found = found?;
            all.folders.extend(found.folders);
            all.broken.extend(found.broken);
            all.files.extend(found.files);
            all.hidden.extend(found.hidden);
        }
        all.broken.sort();
        // Links that may have been classes.
        let (images, others): (Vec<_>, Vec<_>) =
            all.broken.into_iter().partition(|name| is_image_name(name));
        for name in others {
            part.passed.links.add(|| name);
        }
        Ok(Entries {
            files: all.files,
            folders: all.folders,
            broken: images,
            hidden: all.hidden,
        })
    }

    /// Takes in an entry of a folder.
    fn entry(&self, folder: &Folder, entry: &DirEntry, found: &mut Entries) -> Result<()> {
        let (own, path) = (entry.file_name(), || entry.path());
        let printed = printable(own.as_bytes());
        let is_as_printed = folder.is_as_printed && own == printed.as_str();
        let is_hidden = hides(&printed);
        let name = match folder.name.is_empty() {
            true => printed,
            false => format!("{}/{printed}", folder.name),
        };
        if is_hidden {
            found.hidden.extend(hidden_images(entry, name));
            return Ok(());
        }
        let context = || listing(&folder.path);
        let kind = entry.file_type().with_context(context)?;
        // A look at each of a million files would take most of the time: see `source::SIZES`.
        if kind.is_dir() || kind.is_symlink() {
            match patiently(&name, || fs::metadata(path())) {
                // A pipe or a device would keep its reader waiting.
                Ok(target) if target.is_file() => {}
                Ok(target) if target.is_dir() => {
                    found.folders.push((name, path(), is_as_printed));
                    return Ok(());
                }
                Ok(_) => return Ok(()),
                Err(error) => return self.broken(name, &path(), &error, found),
            }
        } else if !kind.is_file() {
            return Ok(());
        }
        let place = match is_as_printed {
            true => Place::File { size: UNKNOWN },
            false => Place::Unprintable {
                path: path().into(),
                size: UNKNOWN,
            },
        };
        found.files.push(Listed {
            name,
            place,
            archive: 0,
        });
        Ok(())
    }

    /// Takes in a link that cannot be followed: an image of the set, or a folder that may have been
    /// a class.
    fn broken(
        &self,
        name: String,
        path: &Path,
        error: &io::Error,
        found: &mut Entries,
    ) -> Result<()> {
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
            found.broken.push(name);
        } else if !name.rsplit('/').next().unwrap_or_default().contains('.') {
            found.broken.push(name);
        }
        Ok(())
    }
}
