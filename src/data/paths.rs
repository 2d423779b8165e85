//! The paths that the user's arguments stand for: a path itself, or a pattern with `*`, `?` or `[`
//! for every path that matches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::Pattern;

use super::image_kind::{ENDINGS, is_image_name};
use super::part::{Kinds, Tally};
use super::selection::{hides, key, may_be_field, printable, unprinted, unread_kind};
use super::shards::{is_shard_name, other_compression};
use crate::error::{Context, Error, Result, usage};
use crate::store::{bundle, foreign};

/// Paths that are scanned together.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Given {
    Folder(PathBuf),
    Shard(PathBuf),
    /// Images of one folder.
    Images {
        folder: PathBuf,
        /// Matches of patterns are data by the same rule as files in a folder; named files always
        /// are.
        images: BTreeSet<(OsString, Named)>,
    },
}

/// How an image was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Named {
    ByItself,
    ByPattern,
}

/// The paths that `patterns` stand for, sorted, each path once, under whatever name.
pub(super) fn expand(patterns: &[String]) -> Result<Vec<Given>> {
    if patterns.is_empty() {
        return Err(usage("no data given", "name folders, tar shards or images"));
    }
    let mut paths = Vec::new();
    for pattern in patterns {
        let path = named_by(pattern);
        // A path may contain a pattern's special characters.
        if path.exists() {
            is_data(&path).map_err(|()| no_data(&path))?;
            paths.push((path, Named::ByItself));
        } else if path.is_symlink() {
            return Err(usage(
                format!("{pattern}: a broken link"),
                "mend the link, or name what it should lead to",
            ));
        } else if pattern.contains(['*', '?', '[']) {
            let matches = matches(pattern)?.into_iter();
            paths.extend(matches.map(|path| (path, Named::ByPattern)));
        } else {
            return Err(absent(pattern));
        }
    }
    let (paths, again) = each_once(paths);
    if again.count > 0 {
        tracing::warn!(
            "{} of the paths are given twice, and taken once: {}",
            again.count,
            again.first
        );
    }
    Ok(together(paths))
}

/// A path as [`expand`] takes it, whatever its bytes are.
pub fn printed(path: &OsStr) -> String {
    printable(path.as_bytes())
}

/// The path that an argument names: itself, or if that is not there, what it is [`printable`] of.
fn named_by(argument: &str) -> PathBuf {
    let path = PathBuf::from(argument);
    match path.symlink_metadata() {
        Ok(_) => path,
        Err(_) => {
            let unprinted = PathBuf::from(OsString::from_vec(unprinted(argument)));
            let is_there = unprinted.symlink_metadata().is_ok();
            if is_there { unprinted } else { path }
        }
    }
}

/// Groups the images of a folder.
fn together(paths: Vec<(PathBuf, Named)>) -> Vec<Given> {
    let mut given: Vec<Given> = Vec::new();
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (path, named) in paths {
        let name = path.file_name().unwrap_or_default().to_os_string();
        if path.is_dir() {
            given.push(Given::Folder(path));
        } else if is_shard_name(&name.to_string_lossy()) {
            given.push(Given::Shard(path));
        } else {
            let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
            let at = *folders.entry(folder.clone()).or_insert(given.len());
            if at == given.len() {
                let images = BTreeSet::new();
                given.push(Given::Images { folder, images });
            }
            if let Some(Given::Images { images, .. }) = given.get_mut(at) {
                images.insert((name, named));
            }
        }
    }
    given
}

/// The matches of a pattern that are data.
fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let (literal, parts) = literal_part(pattern);
    let mut found = BTreeSet::new();
    let named: Vec<&str> = parts.iter().map(String::as_str).collect();
    walk(&literal, &named, &mut found).map_err(|e| e.context(pattern.to_string()))?;
    let (paths, others): (Vec<PathBuf>, Vec<PathBuf>) =
        found.into_iter().partition(|path| is_data(path).is_ok());
    match (paths.is_empty(), others.first()) {
        (false, _) => {
            if let Some(line) = unread(&paths, &others).line() {
                tracing::warn!("{line}");
            }
            Ok(paths)
        }
        (true, Some(other)) => Err(no_data(other)),
        (true, None) => {
            let there = match literal.as_os_str().is_empty() {
                true => "this folder".to_string(),
                false => literal.display().to_string(),
            };
            Err(usage(
                format!("nothing matches {pattern}"),
                format!(
                    "{there} has nothing called {}; as in a shell, a glob passes over hidden files",
                    parts.join("/")
                ),
            ))
        }
    }
}

/// Which of the `others` that a pattern matches beside `data` are of kinds that are not read, as in
/// a folder.
pub(super) fn unread(data: &[PathBuf], others: &[PathBuf]) -> Kinds {
    let key = |path: &Path| {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let key = key(&printable(name)).to_string();
        (path.parent().unwrap_or(Path::new("")).to_path_buf(), key)
    };
    let is_image = |path: &&PathBuf| is_image_name(&path.to_string_lossy());
    let keys: BTreeSet<_> = data.iter().filter(is_image).map(|path| key(path)).collect();
    let mut kinds = Kinds::default();
    for path in others {
        let name = printable(path.file_name().unwrap_or_default().as_bytes());
        let is_field = may_be_field(&name) && keys.contains(&key(path));
        if let Some(kind) = unread_kind(&name).filter(|_| !is_field) {
            kinds.add(kind, || path.display().to_string());
        }
    }
    kinds
}

/// The part of a pattern that exists literally, and the rest.
fn literal_part(pattern: &str) -> (PathBuf, Vec<String>) {
    let mut literal = PathBuf::new();
    let mut rest = Path::new(pattern).components().peekable();
    while let Some(next) = rest.peek() {
        let longer = literal.join(next);
        match longer.is_dir() {
            true => literal = longer,
            false => break,
        }
        rest.next();
    }
    let text = |part: std::path::Component| part.as_os_str().to_string_lossy().into_owned();
    (literal, rest.map(text).collect())
}

/// Adds what `parts` match in `folder`, part by part, as a shell does: hidden files only if a part
/// begins with a dot, files of the operating system never, `**` for any number of folders. A part
/// that exists literally is taken literally.
///
/// The glob crate's own walk does not support names that are not UTF-8.
fn walk(folder: &Path, parts: &[&str], found: &mut BTreeSet<PathBuf>) -> Result<()> {
    let Some((part, rest)) = parts.split_first() else {
        found.insert(folder.to_path_buf());
        return Ok(());
    };
    let exact = folder.join(part);
    if fs::symlink_metadata(&exact).is_ok() {
        return walk(&exact, rest, found);
    }
    let pattern = Pattern::new(part).map_err(|e| {
        usage(
            format!("`{part}` is no pattern: {e}"),
            "`*`, `?`, `[abc]` and `**` are; `[[]` stands for a bracket",
        )
    })?;
    let any_depth = *part == "**";
    if any_depth {
        walk(folder, rest, found)?;
    }
    let listed = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let context = || format!("could not list the folder {}", listed.display());
    for entry in fs::read_dir(listed).with_context(context)? {
        let entry = entry.with_context(context)?;
        let (name, path) = (
            printable(entry.file_name().as_bytes()),
            folder.join(entry.file_name()),
        );
        let wanted = !hides(&name) || (name.starts_with('.') && part.starts_with('.'));
        let is_folder = || match any_depth {
            // A link may lead back.
            true => entry.file_type().is_ok_and(|kind| kind.is_dir()),
            false => path.is_dir(),
        };
        if !wanted || !(any_depth || pattern.matches(&name)) {
            continue;
        }
        if any_depth && is_folder() {
            walk(&path, parts, found)?;
        } else if !any_depth && (rest.is_empty() || is_folder()) {
            walk(&path, rest, found)?;
        }
    }
    Ok(())
}

/// Whether a path is a folder, a shard or an image.
fn is_data(path: &Path) -> std::result::Result<(), ()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_file = || is_shard_name(&name) || is_image_name(&name);
    // Broken links are reported by the reader.
    match path.is_dir() || is_file() {
        true => Ok(()),
        false => Err(()),
    }
}

fn no_data(path: &Path) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(compression) = other_compression(&name) {
        return usage(
            format!(
                "{}: compressed by {compression}, which is not read",
                path.display()
            ),
            "unpack it: shards are .tar, .tar.gz and .tgz",
        );
    }
    let known = foreign::of(path).filter(|kind| kind.name != "text");
    let known = known.map(|kind| (kind.name, kind.remedy));
    if let Some((name, hint)) = bundle::kind_of(path).or(known) {
        return usage(
            format!(
                "{} is {name}; expected a folder, a tar shard or an image",
                path.display()
            ),
            hint,
        );
    }
    usage(
        format!(
            "{}: neither a folder nor a tar shard nor an image",
            path.display()
        ),
        format!("images are read from folders, .tar, .tar.gz, .tgz, {ENDINGS}"),
    )
}

fn absent(pattern: &str) -> Error {
    if pattern.contains('{') && pattern.contains('}') {
        return usage(
            format!("there is no {pattern}"),
            "braces are the shell's: leave out the quotes, or write a pattern such as 'train-*.tar'",
        );
    }
    let path = Path::new(pattern);
    let there = path.ancestors().skip(1).find(|path| path.is_dir());
    let hint = "images are read from folders, tar shards and globs of them";
    usage(
        format!("there is no {pattern}"),
        match there {
            Some(there) => format!("{} is there, the rest is not; {hint}", there.display()),
            None => match std::env::current_dir() {
                Ok(folder) => format!("it was looked for in {}; {hint}", folder.display()),
                Err(_) => hint.to_string(),
            },
        },
    )
}

/// The paths in order, and how many of them are left out: those that are given before, under
/// whatever name, and those in folders that are also given.
pub(super) fn each_once(mut paths: Vec<(PathBuf, Named)>) -> (Vec<(PathBuf, Named)>, Tally) {
    paths.sort();
    let mut taken: HashMap<PathBuf, PathBuf> = HashMap::new();
    // Files with several names on their disk.
    let mut linked: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let (mut once, mut again) = (Vec::new(), Tally::default());
    for (path, named) in paths {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        let file = fs::metadata(&path)
            .ok()
            .filter(|file| file.is_file() && file.nlink() > 1);
        let inode = file.map(|file| (file.dev(), file.ino()));
        let linked_to = inode.and_then(|inode| linked.get(&inode));
        match taken.get(&real).or(linked_to) {
            Some(other) if *other == path => again.add(|| path.display().to_string()),
            Some(other) => again.add(|| format!("{} is {}", path.display(), other.display())),
            None => {
                taken.insert(real.clone(), path.clone());
                linked.extend(inode.map(|inode| (inode, path.clone())));
                once.push((path, real, named));
            }
        }
    }
    once.retain(|(path, real, _)| {
        let around = around(real, &taken);
        if let Some(folder) = around {
            again.add(|| format!("{} lies in {}", path.display(), folder.display()));
        }
        around.is_none()
    });
    let once = once.into_iter().map(|(path, _, named)| (path, named));
    (once.collect(), again)
}

/// The folder in `taken` whose scan also finds the path `real`.
fn around<'a>(real: &Path, taken: &'a HashMap<PathBuf, PathBuf>) -> Option<&'a PathBuf> {
    // A scan of a folder does not read shards in it.
    if is_shard_name(&real.to_string_lossy()) && !real.is_dir() {
        return None;
    }
    let visible = |path: &&Path| {
        let part = path.file_name().and_then(|part| part.to_str());
        part.is_none_or(|part| !hides(part))
    };
    let within = real.ancestors().take_while(visible).skip(1);
    // The given folder itself may have any name.
    let last = real.ancestors().find(|path| !visible(path));
    within
        .chain(last.filter(|last| *last != real))
        .find_map(|folder| taken.get(folder))
}
