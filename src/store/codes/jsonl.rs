//! Codes as a line of JSON per image: `name`, `label`, `mirrored`, `codes` [T][h][w], on request
//! `latents` [d][h][w] and `noise` [T][d][h][w]; every line says where its codes come from, and in
//! `images` how many lines its file has: one that was cut between two lines is not whole.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rows::{Gathered, Row, Rows, Shape};
use super::{Codes, FORMAT, Origin, damaged};
use crate::error::{Context, Result, hinted, usage};
use crate::store::atomic;
use crate::store::bundle::check_format;

type Maps<T> = Vec<Vec<T>>;

/// What is written, of slices, and what is read, of vectors.
#[derive(Serialize, Deserialize)]
struct Line<C, F, G, S> {
    format: S,
    /// None where somebody chose among the lines and took it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<S>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<u32>,
    #[serde(default)]
    mirrored: bool,
    codes: C,
    #[serde(skip_serializing_if = "Option::is_none")]
    latents: Option<F>,
    #[serde(skip_serializing_if = "Option::is_none")]
    noise: Option<G>,
    #[serde(flatten)]
    origin: Origin,
}

/// `values` as maps of `height` rows of `width`.
fn maps<T>(values: &[T], height: usize, width: usize) -> Maps<&[T]> {
    let maps = values.chunks(height * width);
    maps.map(|map| map.chunks(width).collect()).collect()
}

pub(super) fn write(codes: &Codes, path: &Path) -> Result<()> {
    let rows = Rows::of(codes)?;
    let (h, w) = (rows.shape.height, rows.shape.width);
    atomic::write_with(path, |file| {
        for image in 0..codes.len() {
            let noise = rows.noise_of(image).map(|noise| {
                let steps = noise.chunks(rows.shape.latents());
                steps.map(|step| maps(step, h, w)).collect::<Vec<_>>()
            });
            let line = Line {
                format: FORMAT,
                images: Some(codes.len()),
                name: codes.names.get(image).map(String::as_str),
                label: codes.labels.get(image).copied(),
                mirrored: codes.mirrored.get(image).copied().unwrap_or(false),
                codes: maps(rows.codes_of(image), h, w),
                latents: rows.latents_of(image).map(|latents| maps(latents, h, w)),
                noise,
                origin: codes.origin.clone(),
            };
            serde_json::to_writer(&mut *file, &line).map_err(std::io::Error::from)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Whether the file at `path` begins as lines of codes.
pub(super) fn is_codes(path: &Path) -> bool {
    let start = format!("{{\"format\":\"{}", FORMAT.split('/').next().unwrap_or(""));
    let mut found = vec![0; start.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut found));
    read.is_ok() && found == start.as_bytes()
}

type Parsed = Line<Vec<Maps<u32>>, Vec<Maps<f32>>, Vec<Vec<Maps<f32>>>, String>;

pub(super) fn read(path: &Path) -> Result<Codes> {
    let reading = || format!("could not read {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let (mut gathered, mut first) = (Gathered::new(path), None::<Origin>);
    let mut text = String::new();
    let mut part = Part::default();
    for number in 1.. {
        text.clear();
        if file.read_line(&mut text).with_context(reading)? == 0 {
            part.end(path)?;
            break;
        }
        if !text.ends_with('\n') {
            return Err(damaged(path, format!("it ends within line {number}")));
        }
        let line = read_line(path, number, &text)?;
        let origin = first.get_or_insert_with(|| line.origin.clone());
        if *origin != line.origin {
            return Err(mixed(path, number, origin, &line.origin));
        }
        part.add(path, line.images)?;
        let (shape, row) = row(line)
            .ok_or_else(|| damaged(path, format!("line {number}: its rows differ in length")))?;
        gathered.push(shape, row)?;
    }
    match first {
        Some(origin) => gathered.finish(origin),
        None => Err(damaged(path, "it holds no images".into())),
    }
}

/// Lines that were written as one file; several such may follow one another.
#[derive(Default)]
struct Part {
    lines: usize,
    /// How many it has, if they say so.
    of: Option<usize>,
}

impl Part {
    /// Counts a line that says that its file has so many.
    fn add(&mut self, path: &Path, images: Option<usize>) -> Result<()> {
        if self.of.is_none_or(|of| self.lines >= of) {
            *self = Part {
                lines: 0,
                of: images,
            };
        } else if self.of != images {
            self.end(path)?;
        }
        self.lines += 1;
        Ok(())
    }

    /// Refuses one that lacks lines.
    fn end(&self, path: &Path) -> Result<()> {
        match self.of.filter(|of| self.lines < *of) {
            Some(of) => Err(hinted(
                format!(
                    "{} is not a valid codes file: {} of {of} images are there",
                    path.display(),
                    self.lines
                ),
                "remove it, and make it again with the same `rdpm encode` command; or, if lines were \
                 left out on purpose, take `images` out of the others",
            )),
            None => Ok(()),
        }
    }
}

fn read_line(path: &Path, number: usize, text: &str) -> Result<Parsed> {
    #[derive(Deserialize)]
    struct Start {
        format: Option<String>,
    }
    let bad = |e| damaged(path, format!("line {number}: {e}"));
    serde_json::from_str(text).or_else(|error| {
        // Lines of another kind of file, or of a newer version, may lack anything else.
        let start: Start = serde_json::from_str(text).map_err(bad)?;
        check_format(path, start.format.as_deref(), FORMAT)?;
        Err(bad(error))
    })
}

fn mixed(path: &Path, number: usize, first: &Origin, found: &Origin) -> crate::error::Error {
    let path = path.display();
    match first.tokenizer == found.tokenizer {
        true => usage(
            format!("{path}: line {number} has another seed or codebook size than the first"),
            "keep files of different `rdpm encode` commands apart",
        ),
        false => usage(
            format!(
                "{path}: line {number} was made by another tokenizer than the first: expected \
                 {:.12}…, found {:.12}…",
                first.tokenizer, found.tokenizer
            ),
            "keep files of different tokenizers apart",
        ),
    }
}

/// None if maps are not all of one shape.
fn row(line: Parsed) -> Option<(Shape, Row)> {
    let first = line.codes.first()?;
    let (height, width) = (first.len(), first.first()?.len());
    let latents = line.latents.as_ref().map(Vec::len);
    let noise = line
        .noise
        .as_ref()
        .and_then(|noise| Some(noise.first()?.len()));
    let shape = Shape {
        steps: line.codes.len(),
        height,
        width,
        embed_dim: latents.or(noise).unwrap_or(0),
    };
    fn flat<T: Copy>(maps: Vec<Maps<T>>, height: usize, width: usize) -> Option<Vec<T>> {
        let fits = maps
            .iter()
            .all(|map| map.len() == height && map.iter().all(|row| row.len() == width));
        fits.then(|| maps.into_iter().flatten().flatten().collect())
    }
    let noise = match line.noise {
        Some(steps) => {
            let steps = steps.into_iter().map(|step| flat(step, height, width));
            Some(steps.collect::<Option<Vec<_>>>()?.concat())
        }
        None => None,
    };
    Some((
        shape,
        Row {
            name: line.name,
            label: line.label,
            mirrored: line.mirrored,
            codes: flat(line.codes, height, width)?,
            latents: match line.latents {
                Some(latents) => Some(flat(latents, height, width)?),
                None => None,
            },
            noise,
        },
    ))
}
