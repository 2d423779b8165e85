//! `sample --part I/N`: pictures that processes draw without knowing of each other, and their
//! union.
//!
//! `OUT.parts` holds `part-I-of-N.npz`, each of which appears whole or not at all: `arr_0` u8
//! [n,H,W,3] (strips: [n,T,H,W,3]), in the order of the whole output, `arr_1` their classes, with
//! rejection `probability` F32 [n], and `rdpm`, JSON of everything that decides the pictures.

use std::io::Read;
use std::path::PathBuf;

use image::RgbImage;
use serde_json::Value;

use super::super::part::Part;
use super::super::parts::{self, damaged, write_identity};
use super::drawer::{Drawer, Drawn};
use crate::error::{Context, Result};
use crate::interrupt::Interrupt;
use crate::sample::{Output, Picture, Pictures};
use crate::store::atomic;
use crate::store::npz::{Element, Npz, NpzWriter};
use crate::telemetry::Progress;

/// The parts of an output.
pub struct Parts(parts::Parts);

/// All parts, ready to be joined.
pub struct Joined {
    archives: Vec<Npz>,
}

impl Parts {
    /// Those of `output`, which lie beside it.
    pub fn beside(output: &Output) -> Self {
        let path = output.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self(parts::Parts {
            folder: path.with_file_name(format!("{name}.parts")),
            what: "images",
            otherwise: "without the folder, all images are drawn here",
            elsewhere: "choose another --out",
        })
    }

    pub fn exist(&self) -> bool {
        self.0.exist()
    }

    /// Draws and writes one part, unless it is there. Returns where it lies and its number of
    /// pictures.
    ///
    /// Errors: those of drawing and writing; the part that is there is of other pictures; a signal
    /// that asks to stop, after which nothing is written.
    pub fn write(
        &self,
        part: Part,
        pictures: Pictures,
        drawer: &Drawer,
        identity: &Value,
    ) -> Result<(PathBuf, usize)> {
        let path = self.0.path(part);
        let batches: Vec<usize> = part.of(drawer.batches()).collect();
        let count = batches.iter().map(|batch| drawer.numbers(*batch).len());
        let count: usize = count.sum();
        if !self.0.lacks(part, identity)? {
            return Ok((path, count));
        }
        let interrupt = Interrupt::listen()?;
        let mut progress = Progress::new("sample", count as u64, 0);
        atomic::write_with(&path, |file| {
            let mut npz = NpzWriter::new(file);
            npz.array("arr_0", Element::U8, &shape(count, pictures))?;
            let (mut labels, mut probabilities, mut done) = (Vec::new(), Vec::new(), 0);
            for batch in &batches {
                interrupt.check(
                    || format!("after {done} of {count} images of part {part}"),
                    || "nothing of this part is kept; the same command starts it again".into(),
                )?;
                let drawn = drawer.batch(*batch)?;
                probabilities.extend(drawn.probabilities.iter().flat_map(|p| p.to_le_bytes()));
                for picture in drawn.pictures {
                    labels.extend(i64::from(picture.label).to_le_bytes());
                    for image in &picture.images {
                        npz.write(image.as_raw())?;
                    }
                    done += 1;
                }
                progress.set(done as u64, "");
            }
            npz.array("arr_1", Element::I64, &[count])?;
            npz.write(&labels)?;
            npz.array("probability", Element::F32, &[probabilities.len() / 4])?;
            npz.write(&probabilities)?;
            write_identity(&mut npz, identity, part)?;
            npz.finish()?;
            Ok(())
        })?;
        Ok((path, count))
    }

    /// Opens all parts, of pictures that are these.
    ///
    /// Errors: parts of two divisions; missing ones; one of other pictures, or a damaged one.
    pub fn open(&self, identity: &Value) -> Result<Joined> {
        let archives = self.0.open(identity)?;
        Ok(Joined { archives })
    }
}

impl Joined {
    /// Passes all pictures to `take`, batch by batch, in the order of the whole output.
    ///
    /// Errors: those of `take`; a damaged part.
    pub fn each(
        mut self,
        pictures: Pictures,
        drawer: &Drawer,
        mut take: impl FnMut(Drawn) -> Result<()>,
    ) -> Result<()> {
        let count = self.archives.len();
        let mut probabilities = Vec::new();
        for npz in &mut self.archives {
            let path = npz.path().to_path_buf();
            let found = npz.floats("probability").map_err(|e| damaged(&path, &e))?;
            probabilities.push(found.values.into_iter());
        }
        let mut parts = Vec::new();
        for (index, npz) in self.archives.iter_mut().enumerate() {
            let path = npz.path().to_path_buf();
            let own = Part { index, count }.of(drawer.batches());
            let own: usize = own.map(|batch| drawer.numbers(batch).len()).sum();
            let stream = npz.stream("arr_0", &shape(own, pictures));
            parts.push((stream.map_err(|e| damaged(&path, &e))?, path));
        }
        for batch in 0..drawer.batches() {
            let (from, path) = &mut parts[batch % count];
            let mut drawn = Drawn {
                pictures: Vec::new(),
                probabilities: Vec::new(),
            };
            for number in drawer.numbers(batch) {
                let images = (0..pictures.beside).map(|_| one(&mut *from, pictures));
                let images = images.collect::<Result<_>>();
                drawn.pictures.push(Picture {
                    images: images.map_err(|e| damaged(path, &e))?,
                    label: drawer.plan.label(*number),
                    number: *number,
                });
                let probability = probabilities[batch % count].next();
                drawn.probabilities.extend(probability.map(|p| p as f32));
            }
            take(drawn)?;
        }
        for (from, path) in &mut parts {
            // The checksum is compared at the end.
            let rest = std::io::copy(from, &mut std::io::sink());
            rest.map_err(|e| damaged(path, &e.into()))?;
        }
        Ok(())
    }
}

/// The next image of a part.
fn one(from: &mut dyn Read, pictures: Pictures) -> Result<RgbImage> {
    let mut bytes = vec![0; pictures.width * pictures.height * 3];
    from.read_exact(&mut bytes)?;
    let image = RgbImage::from_raw(pictures.width as u32, pictures.height as u32, bytes);
    image.context("an image of another size")
}

fn shape(count: usize, pictures: Pictures) -> Vec<usize> {
    let image = [pictures.height, pictures.width, 3];
    match pictures.beside {
        1 => [&[count], &image[..]].concat(),
        beside => [&[count, beside], &image[..]].concat(),
    }
}
