//! Sources: labelled images by index, found when they are opened, read and decoded one by one.
//!
//! What a path is decides how it is opened: a folder of images, a tar shard, a single image. All
//! paths become one source, sorted, each once, so the order of images does not depend on the order
//! in which they were named.

use std::collections::HashMap;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::decode::decode;
use super::index::{self, Item, Saved, Table};
use super::labelling::label;
use super::numbering::{numbering, unknown_class};
use super::pack::header::{self, Header};
use super::part::{Changed, ClassName, Kind, Part, Place, UNKNOWN};
use super::paths::{Given, expand};
use super::plausible;
use super::selection::stem;
use super::small_pages::SmallPages;
use super::{Classes, folder, shards};
use crate::config::Crop;
use crate::error::{Context, Error, Result, hinted, usage};
use crate::store::digest::hex;

/// Threads that look at files: they wait for a disk, or a file server, longer than they compute.
const THREADS: usize = 8;

/// Images of a set that an index is kept of unasked: fewer are soon found.
const MANY: usize = 10_000;

/// Images whose sizes are looked at, and are in the fingerprint: all of a set of so many, else at
/// most so many at equal distances. A system takes 7 µs for each of a million files that it has to
/// fetch from the disk, which is most of the time of a look.
const SIZES: usize = 1 << 16;

/// One decoded image.
#[derive(Debug, Clone)]
pub struct Example {
    pub image: RgbImage,
    /// 0 where the source has no classes.
    pub label: u32,
    /// Its name in the source, without ending.
    pub key: String,
}

/// Images by index; the order is fixed.
pub trait Source: Send + Sync {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Empty: the images have no labels.
    fn classes(&self) -> &Classes;

    /// Reads and decodes one image; an error names its path.
    fn read(&self, index: usize) -> Result<Example>;

    /// What it holds, in a line.
    fn summary(&self) -> String {
        format!("{} images of {} classes", self.len(), self.classes().len())
    }

    /// What of its labels is hard to believe, a sentence each.
    fn doubts(&self) -> &[String] {
        &[]
    }

    /// Says what of its labels is hard to believe; for whoever uses them.
    fn warn_of_doubts(&self) {
        for doubt in self.doubts() {
            tracing::warn!("{doubt}");
        }
    }

    /// Refuses crops of `size` that it does not hold, since it was packed for others.
    fn serve(&self, _size: usize, _crop: Crop) -> Result<()> {
        Ok(())
    }

    /// A digest of what the source holds (names, labels, and sizes of up to 65,536 images, spread
    /// over a larger set): equal for equal data wherever it lies.
    fn fingerprint(&self) -> Result<String>;
}

/// Opens folders, shards and globs of them as one source, classes numbered by their sorted names.
///
/// With `skip_bad`, what cannot be read of a damaged shard is reported and left out instead of an
/// error. A large set is looked through once: its index is kept, see [`super::index`].
pub fn open(patterns: &[String], skip_bad: bool) -> Result<Arc<dyn Source>> {
    let asked = Asked {
        patterns,
        classes: None,
        skip_bad,
    };
    let given = expand(patterns)?;
    if let Some(saved) = index::find(&given) {
        let images = asked.of_index(saved)?;
        images.say(&asked);
        return Ok(Arc::new(images));
    }
    let mut images = asked.look(given)?;
    images.say(&asked);
    if images.table.len() >= MANY {
        match index::obstacle(&images.parts, &images.table) {
            Some(what) => tracing::debug!("no index is kept of {what}"),
            None => {
                if let Err(error) = images.keep() {
                    tracing::warn!("no index is kept, every start is slow: {error:#}");
                }
            }
        }
    }
    Ok(Arc::new(images))
}

/// As [`open`], with the numbering of `classes`: a validation set takes its training set's. An
/// unknown class is an error.
pub fn open_numbered(
    patterns: &[String],
    classes: &Classes,
    skip_bad: bool,
) -> Result<Arc<dyn Source>> {
    let asked = Asked {
        patterns,
        classes: Some(classes),
        skip_bad,
    };
    let images = asked.look(expand(patterns)?)?;
    images.say(&asked);
    Ok(Arc::new(images))
}

/// An index that is kept, see [`keep_index`].
#[derive(Debug)]
pub struct Kept {
    pub path: PathBuf,
    pub images: usize,
    /// It was made now, not found.
    pub is_new: bool,
}

/// Makes the index of a set, of any size, where there is none that fits; with `refresh`, also where
/// there is one.
///
/// Errors: those of [`open`]; a set of which none can be kept.
pub fn keep_index(patterns: &[String], refresh: bool) -> Result<Kept> {
    let asked = Asked {
        patterns,
        classes: None,
        skip_bad: false,
    };
    let given = expand(patterns)?;
    let kept = |path, images: &Images, is_new| Kept {
        path,
        images: images.table.len(),
        is_new,
    };
    if !refresh && let Some(saved) = index::find(&given) {
        let path = saved.path.clone();
        return Ok(kept(path, &asked.of_index(saved)?, false));
    }
    let mut images = asked.look(given)?;
    images.say(&asked);
    // What has just changed may change again without a trace.
    index::settle(&images.parts);
    let path = images.keep()?;
    Ok(kept(path, &images, true))
}

/// Looks through the shard at `path` and reads its first images; whether there are any.
pub(crate) fn read_shard(path: &Path, most_gzip: u64) -> Result<bool> {
    let scanned = shards::scan(path, true, &AtomicU64::new(0), most_gzip)?;
    let mut parts = [scanned];
    label(&mut parts, true)?;
    let classes = numbering(&parts, None)?;
    header::of_parts(&parts)?;
    let table = table(&mut parts, &classes)?;
    for index in 0..table.len().min(8) {
        let item = table.item(index);
        let _ = parts[item.part].bytes(item.name, &item.place);
    }
    Ok(table.len() > 0)
}

/// Threads that look at files.
pub(super) fn lookers() -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .thread_name(|number| format!("rdpm-look-{number}"))
        .build()
        .context("could not start threads")
}

/// What a set is opened for.
struct Asked<'a> {
    patterns: &'a [String],
    /// The numbering of another set.
    classes: Option<&'a Classes>,
    skip_bad: bool,
}

/// Files and members of shards as one source.
struct Images {
    parts: Vec<Part>,
    table: Table,
    classes: Classes,
    summary: String,
    doubts: Vec<String>,
    /// What was passed over.
    passed: Vec<String>,
    sharing: Option<String>,
    /// Where it is known without looking at files.
    fingerprint: Option<String>,
    /// The shards that are packs.
    packs: Vec<(PathBuf, Header)>,
    /// What it was opened by, as a command line names it.
    named: String,
}

impl Asked<'_> {
    /// Looks through all that is given.
    fn look(&self, given: Vec<Given>) -> Result<Images> {
        let _pages = SmallPages::begin();
        let unpacked = AtomicU64::new(0);
        let scanned: Vec<Result<Part>> = lookers()?.install(|| {
            let scanned = given.into_par_iter();
            scanned
                .map(|given| scan(given, self.skip_bad, &unpacked))
                .collect()
        });
        let mut parts = scanned.into_iter().collect::<Result<Vec<Part>>>()?;
        for part in &parts {
            tracing::debug!("{}: {} images", part.path.display(), part.found.len());
        }
        let origin = label(&mut parts, self.skip_bad)?;
        let classes = numbering(&parts, self.classes)?;
        let used = plausible::used(&parts);
        let doubts = plausible::doubts(&parts, &classes, &origin, &used, self.classes.is_some());
        let mut table = table(&mut parts, &classes)?;
        look_at_sizes(&mut parts, &mut table)?;
        Ok(Images {
            summary: plausible::summary(table.len(), &classes, &origin),
            passed: plausible::passed_over(&parts),
            sharing: plausible::sharing(&parts),
            fingerprint: None,
            packs: header::of_parts(&parts)?,
            named: shortened(self.patterns),
            parts,
            table,
            classes,
            doubts,
        })
    }

    fn of_index(&self, saved: Saved) -> Result<Images> {
        let mut doubts = saved.doubts;
        doubts.extend(plausible::unlabelled_folders(&saved.parts, &saved.classes));
        Ok(Images {
            packs: header::of_parts(&saved.parts)?,
            parts: saved.parts,
            table: saved.table,
            classes: saved.classes,
            summary: saved.summary,
            doubts,
            passed: saved.passed,
            sharing: saved.sharing,
            fingerprint: Some(saved.fingerprint),
            named: shortened(self.patterns),
        })
    }
}

impl Images {
    /// Writes what was found to the log.
    fn say(&self, asked: &Asked) {
        self.parts.iter().for_each(Part::say);
        let bad: usize = self.parts.iter().map(|part| part.bad).sum();
        tracing::info!(
            images = self.table.len(),
            classes = self.classes.len(),
            bad,
            "opened {}: {}",
            shortened(asked.patterns),
            self.summary
        );
        for line in &self.passed {
            tracing::warn!("{line}");
        }
        if let Some(line) = &self.sharing {
            tracing::info!("{line}");
        }
    }

    /// Keeps an index of it, which is read from then on instead of the memory.
    fn keep(&mut self) -> Result<PathBuf> {
        let unlabelled = plausible::unlabelled_folders(&self.parts, &self.classes);
        let doubts = self
            .doubts
            .iter()
            .filter(|doubt| Some(*doubt) != unlabelled.as_ref());
        let fingerprint = self.fingerprint()?;
        let (path, table) = index::save(index::Contents {
            parts: &self.parts,
            table: &self.table,
            classes: &self.classes,
            summary: &self.summary,
            doubts: doubts.cloned().collect(),
            passed: &self.passed,
            sharing: &self.sharing,
            fingerprint: &fingerprint,
        })?;
        (self.table, self.fingerprint) = (table, Some(fingerprint));
        Ok(path)
    }

    fn bytes(&self, item: &Item) -> Result<Vec<u8>> {
        let part = &self.parts[item.part];
        let _span = tracing::debug_span!("read").entered();
        let path = part.path_of(item.name);
        if let Place::Refused(reason) = &item.place {
            return Err(hinted(
                format!("{path}: {reason}"),
                "make the shard again, or leave bad images out with --skip-bad-images",
            ));
        }
        part.bytes(item.name, &item.place)
            .map_err(|error| match error.downcast::<Changed>() {
                Ok(changed) => self.changed(&path, &changed),
                Err(error) if is_gone(&error) => hinted(
                    format!("{path} is gone: it was there when the data was looked through"),
                    format!(
                        "put it back, or leave such images out with --skip-bad-images; for another run, look again: rdpm index --refresh {}",
                        self.named
                    ),
                ),
                Err(error) => error.context(format!("could not read {path}")),
            })
    }

    /// The error of data that is not what was opened, which is no bad image: all others may have
    /// changed too.
    fn changed(&self, path: &str, changed: &Changed) -> Error {
        let hint = format!(
            "look through the data again: rdpm index --refresh {}",
            self.named
        );
        usage(format!("{path}: {changed}"), hint).context(DataChanged)
    }
}

fn is_gone(error: &Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::NotFound)
}

/// What marks an error as one of data that has changed since it was opened.
#[derive(Debug)]
pub(super) struct DataChanged;

impl std::fmt::Display for DataChanged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the data has changed")
    }
}

/// The images of all parts with their classes' numbers.
pub(super) fn table(parts: &mut [Part], classes: &Classes) -> Result<Table> {
    let indices: HashMap<&str, u32> = classes
        .iter()
        .map(|class| class.wnid.as_str())
        .zip(0..)
        .collect();
    let mut lists = Vec::new();
    for part in parts.iter_mut() {
        let mut labels = Vec::new();
        for (number, class) in (0..).zip(part.found.used()) {
            labels.push(match class {
                None => 0,
                Some(ClassName::Number(label)) => *label,
                Some(ClassName::Name(name)) => *indices.get(&**name).ok_or_else(|| {
                    let mut found = part.found.iter();
                    let first = found.find(|found| found.class == Some(number));
                    let path = part.path_of(first.map_or("", |found| found.name));
                    unknown_class(&path, name, classes)
                })?,
            });
        }
        lists.push((std::mem::take(&mut part.found), labels));
    }
    Ok(Table::of_lists(lists))
}

/// How far the images lie apart whose sizes are looked at, of `count`.
fn step(count: usize) -> usize {
    count.div_ceil(SIZES).max(1)
}

/// The numbers of the images whose sizes are looked at, of `count`.
fn sized(count: usize) -> impl Iterator<Item = usize> {
    (0..count).step_by(step(count))
}

/// Looks at the sizes of up to [`SIZES`] images of folders.
///
/// Where a file is newer than the look at its folder, it has just been written, or its file
/// system's clock is ahead: then times of files tell nothing of what is written later.
fn look_at_sizes(parts: &mut [Part], table: &mut Table) -> Result<()> {
    if parts.iter().all(|part| part.kind != Kind::Folder) {
        return Ok(());
    }
    let numbers: Vec<usize> = sized(table.len()).collect();
    let look = |index: &usize| {
        let item = table.item(*index);
        let part = &parts[item.part];
        match part.kind {
            Kind::Folder => {
                let (size, is_new) = size_of(part, &item)?;
                Ok((size, is_new.then_some(item.part)))
            }
            Kind::Shard | Kind::Image => Ok((UNKNOWN, None)),
        }
    };
    let looked: Vec<(u64, Option<usize>)> =
        lookers()?.install(|| numbers.par_iter().map(look).collect::<Result<_>>())?;
    for part in looked.iter().filter_map(|(_, newer)| *newer) {
        parts[part].looked = None;
    }
    let sizes = looked.into_iter().map(|(size, _)| size).collect();
    table.set_sizes(sizes, step(table.len()));
    Ok(())
}

/// The size of an image, and whether it was written to since the look.
fn size_of(part: &Part, item: &Item) -> Result<(u64, bool)> {
    part.size(item.name, &item.place)
        .with_context(|| format!("could not look at {}", part.path_of(item.name)))
}

/// A shell may have turned a pattern into thousands of paths.
fn shortened(patterns: &[String]) -> String {
    match patterns {
        [first, .., last] if patterns.len() > 4 => {
            format!("{first} ... {last} ({} paths)", patterns.len())
        }
        _ => patterns.join(" "),
    }
}

impl Source for Images {
    fn len(&self) -> usize {
        self.table.len()
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn read(&self, index: usize) -> Result<Example> {
        let item = self.table.item(index);
        let path = self.parts[item.part].path_of(item.name);
        tracing::trace!("reading {path}");
        let image = decode(&self.bytes(&item)?, &path)?;
        Ok(Example {
            image,
            label: item.label,
            key: stem(item.name).to_string(),
        })
    }

    fn summary(&self) -> String {
        self.summary.clone()
    }

    fn doubts(&self) -> &[String] {
        &self.doubts
    }

    fn serve(&self, size: usize, crop: Crop) -> Result<()> {
        let mut packs = self.packs.iter();
        packs.try_for_each(|(path, header)| header.serve(path, size, crop))
    }

    fn fingerprint(&self) -> Result<String> {
        if let Some(known) = &self.fingerprint {
            return Ok(known.clone());
        }
        let (mut digest, mut line) = (Sha256::new(), String::new());
        let mut sized = sized(self.table.len()).peekable();
        for index in 0..self.table.len() {
            let item = self.table.item(index);
            line.clear();
            write!(line, "{}\0", item.name)?;
            if sized.next_if_eq(&index).is_some() {
                write!(line, "{}", size_of(&self.parts[item.part], &item)?.0)?;
            }
            writeln!(line, "\0{}", item.label)?;
            digest.update(&line);
        }
        Ok(hex(&digest.finalize()))
    }
}

/// Finds the images of what is given.
fn scan(given: Given, skip_bad: bool, unpacked: &AtomicU64) -> Result<Part> {
    match given {
        Given::Folder(path) => folder::scan(&path, skip_bad),
        Given::Shard(path) => shards::scan(&path, skip_bad, unpacked, shards::GZIP_LIMIT),
        Given::Images { folder, images } => folder::scan_images(&folder, &images),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sizes_of_a_small_set_are_looked_at_and_some_from_all_over_a_large_one() {
        for count in [0, 1, 100, SIZES] {
            assert!(sized(count).eq(0..count), "{count}");
        }
        for count in [SIZES + 1, 1_281_167] {
            let numbers: Vec<usize> = sized(count).collect();
            assert!((SIZES / 2..=SIZES).contains(&numbers.len()), "{count}");
            let step = numbers[1];
            assert!(numbers.is_sorted() && numbers[numbers.len() - 1] + step >= count);
        }
    }
}
