//! Packs: a data set as tar shards of images at the training size, decoded and resized once.
//!
//! A pack for [`Crop::Random`] keeps every image whole with its shorter side at the size, a pack
//! for [`Crop::Center`] the square in the middle. Both are stored without loss, so that training
//! gets the bits that it gets from the source: resizing to the size that an image has changes
//! nothing.
//!
//! Members are called NUMBER-KEY.ppm and NUMBER-KEY.cls, NUMBER the place in the source, so that
//! the order is the source's; in KEY, `_` stands for dots and slashes. A shard appears whole or not
//! at all, and says in a first, hidden member what it is made of ([`header`]), so that a pack that
//! was stopped goes on with the shards that are missing.

pub(super) mod header;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::header::Header;
use super::augment::{center_crop, whole};
use super::labels;
use super::part::{ClassName, Label};
use super::source::DataChanged;
use super::{Classes, Source};
use crate::config::Crop;
use crate::error::{Context, Result, hinted, usage};
use crate::interrupt::Interrupt;
use crate::store::atomic;
use crate::telemetry::Progress;

/// Images that are made before they are written.
const BLOCK: usize = 128;

/// How images are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Bytes as they are: read at the speed of a copy
    Ppm,
    /// Compressed: about half the size of PPM, but slower to read
    Png,
}

impl Encoding {
    fn ending(self) -> &'static str {
        match self {
            Encoding::Ppm => "ppm",
            Encoding::Png => "png",
        }
    }

    fn encode(self, image: &RgbImage) -> Result<Vec<u8>> {
        match self {
            Encoding::Ppm => {
                let head = format!("P6\n{} {}\n255\n", image.width(), image.height());
                Ok([head.as_bytes(), image.as_raw()].concat())
            }
            Encoding::Png => {
                let mut png = Vec::new();
                let (width, height) = image.dimensions();
                let encoder = PngEncoder::new(&mut png);
                encoder.write_image(image, width, height, ExtendedColorType::Rgb8)?;
                Ok(png)
            }
        }
    }
}

/// How a pack is made.
#[derive(Debug, Clone)]
pub struct Packing {
    pub out: PathBuf,
    pub size: usize,
    /// [`Crop::Random`] or [`Crop::Center`].
    pub crop: Crop,
    pub shard_images: usize,
    pub encoding: Encoding,
    /// An image that cannot be decoded is reported and left out instead of an error.
    pub skip_bad: bool,
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub shards: usize,
    /// Shards that were there already.
    pub kept: usize,
    /// Images left out of the shards made now.
    pub skipped: usize,
    /// Of all shards.
    pub bytes: u64,
}

/// Packs all images of `source`; shards of the same pack that are there already stay.
///
/// Errors: a crop that no pack serves; a `source` that is itself a pack of something else; another
/// content of the folder; those of reading and writing; a signal that asks to stop.
pub fn pack(source: &dyn Source, packing: &Packing) -> Result<Packed> {
    if packing.crop == Crop::RandomResized {
        return Err(usage(
            "no pack serves the crop \"random-resized\", which is cut out of the original images",
            "pack for random or center crops",
        ));
    }
    source.serve(packing.size, packing.crop)?;
    if source.is_empty() {
        return Err(hinted("the data set holds no images", ""));
    }
    let header = Header {
        version: header::VERSION,
        image_size: packing.size,
        crop: packing.crop,
        encoding: packing.encoding,
        data: source.fingerprint()?,
        images: source.len(),
        shard_images: packing.shard_images,
        shard: 0,
    };
    let texts = class_texts(source.classes())?;
    let there = there(&packing.out, &header)?;
    fs::create_dir_all(&packing.out)
        .with_context(|| format!("could not make the folder {}", packing.out.display()))?;
    let shards = source.len().div_ceil(packing.shard_images);
    let mut work = Work {
        source,
        packing,
        texts,
        progress: Progress::new(
            "pack",
            source.len() as u64,
            (0..shards)
                .filter(|shard| there.contains(shard))
                .map(|shard| range(&header, shard).len() as u64)
                .sum(),
        ),
        interrupt: Interrupt::listen()?,
        skipped: 0,
    };
    let mut bytes = 0;
    for shard in 0..shards {
        let path = shard_path(&packing.out, shard);
        if !there.contains(&shard) {
            let header = Header {
                shard,
                ..header.clone()
            };
            atomic::write_with(&path, |file| work.write(&header, file))?;
        }
        let read = || format!("could not read {}", path.display());
        bytes += fs::metadata(&path).with_context(read)?.len();
    }
    Ok(Packed {
        shards,
        kept: there.len(),
        skipped: work.skipped,
        bytes,
    })
}

fn shard_path(out: &Path, shard: usize) -> PathBuf {
    out.join(format!("pack-{shard:05}.tar"))
}

/// The images of a shard, by place in the source.
fn range(header: &Header, shard: usize) -> Range<usize> {
    let first = shard * header.shard_images;
    first..(first + header.shard_images).min(header.images)
}

/// The numbers of the shards of this pack that the folder `out` holds.
fn there(out: &Path, header: &Header) -> Result<Vec<usize>> {
    let mut there = Vec::new();
    if !out.exists() {
        return Ok(there);
    }
    let context = || format!("could not list the folder {}", out.display());
    for entry in fs::read_dir(out).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // What is hidden is no data; a shard that was being written is swept away.
        if name.starts_with('.') {
            continue;
        }
        let found = match path.is_file() {
            true => header::of_file(&path)?,
            false => None,
        };
        let Some(found) = found else {
            return Err(usage(
                format!("{} exists and is no shard of a pack", path.display()),
                "name a new folder with --out",
            ));
        };
        let expected = Header {
            shard: found.shard,
            ..header.clone()
        };
        if let Some(difference) = difference(&found, &expected) {
            return Err(usage(
                format!("{} belongs to another pack: {difference}", path.display()),
                "name a new folder with --out, or remove that pack",
            ));
        }
        if path != shard_path(out, found.shard) {
            return Err(usage(
                format!(
                    "{} is shard {} of a pack, renamed",
                    path.display(),
                    found.shard
                ),
                format!("call it {}", shard_path(out, found.shard).display()),
            ));
        }
        there.push(found.shard);
    }
    Ok(there)
}

/// What is not as expected, first.
fn difference(found: &Header, expected: &Header) -> Option<String> {
    let differ = |what: &str, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
        Some(format!("its {what} is {found:?}, expected {expected:?}"))
    };
    match (found, expected) {
        (f, e) if f == e => None,
        (f, e) if f.version != e.version => differ("version", &f.version, &e.version),
        (f, e) if f.image_size != e.image_size => differ("size", &f.image_size, &e.image_size),
        (f, e) if f.crop != e.crop => differ("crop", &f.crop, &e.crop),
        (f, e) if f.encoding != e.encoding => differ("encoding", &f.encoding, &e.encoding),
        (f, e) if f.shard_images != e.shard_images => {
            differ("number of images a shard", &f.shard_images, &e.shard_images)
        }
        _ => Some("it was made of other data".to_string()),
    }
}

/// What `.cls` says of each class: its name; the numbers of all classes if one's name would be read
/// as something else.
///
/// Errors: a name is the number of another class, which a model trained on the pack would take it
/// for.
fn class_texts(classes: &Classes) -> Result<Vec<String>> {
    let reads_as_itself = |name: &str| {
        let expected = Label::Field(ClassName::Name(name.into()));
        labels::cls(name.as_bytes()) == expected
    };
    for (number, class) in classes.iter().enumerate() {
        let read = labels::cls(class.wnid.as_bytes());
        if matches!(read, Label::Field(ClassName::Number(n)) if n as usize != number) {
            return Err(usage(
                format!(
                    "the class `{}` is number {number} of the data set: in a pack its name would \
                     stand for another class",
                    class.wnid
                ),
                "rename the folders so that their order is their number (00, 01, …), or to words",
            ));
        }
    }
    let numbers: Vec<String> = (0..classes.len()).map(|i| i.to_string()).collect();
    let names: Vec<String> = classes.iter().map(|class| class.wnid.clone()).collect();
    Ok(match names.iter().find(|name| !reads_as_itself(name)) {
        _ if names == numbers => names,
        None => names,
        Some(name) => {
            tracing::warn!(
                "the class `{name}` would not be read back as a name: the pack has the classes' \
                 numbers instead"
            );
            numbers
        }
    })
}

struct Work<'a> {
    source: &'a dyn Source,
    packing: &'a Packing,
    texts: Vec<String>,
    progress: Progress,
    interrupt: Interrupt,
    skipped: usize,
}

/// An image and its label as members of a shard.
struct Made {
    name: String,
    image: Vec<u8>,
    label: u32,
}

impl Work<'_> {
    fn write(&mut self, header: &Header, file: &mut impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(file);
        add(&mut tar, header::MEMBER, &serde_json::to_vec(header)?)?;
        let places: Vec<usize> = range(header, header.shard).collect();
        for block in places.chunks(BLOCK) {
            self.interrupt.check(
                || format!("before image {} of {}", block[0], header.images),
                || "whole shards are kept; the same command goes on with the others".into(),
            )?;
            let (source, packing) = (self.source, self.packing);
            let made = block.par_iter().map(|&place| make(source, packing, place));
            let made: Vec<_> = made.collect();
            for made in made {
                match made? {
                    Some(made) => {
                        let ending = packing.encoding.ending();
                        add(&mut tar, &format!("{}.{ending}", made.name), &made.image)?;
                        if let Some(text) = self.texts.get(made.label as usize) {
                            add(&mut tar, &format!("{}.cls", made.name), text.as_bytes())?;
                        }
                    }
                    None => self.skipped += 1,
                }
                self.progress.advance();
            }
        }
        Ok(tar.finish()?)
    }
}

/// None of an image that is left out.
fn make(source: &dyn Source, packing: &Packing, place: usize) -> Result<Option<Made>> {
    let example = match source.read(place) {
        Ok(example) => example,
        Err(error) if packing.skip_bad && !error.is::<DataChanged>() => {
            tracing::warn!("skipped: {error:#}");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let image = match packing.crop {
        Crop::Center => center_crop(&example.image, packing.size),
        _ => whole(&example.image, packing.size),
    };
    let key = example.key.replace(['/', '.'], "_");
    Ok(Some(Made {
        name: format!("{place:08}-{key}"),
        image: packing.encoding.encode(&image)?,
        label: example.label,
    }))
}

fn add(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes)
}
