//! Codes as a WebDataset shard: a tar with `KEY.codes.npy` [T,h,w], `KEY.cls`, `KEY.latents.npy`
//! [d,h,w] and `KEY.noise.npy` [T,d,h,w] of every image.
//!
//! KEY is the image's place in the file and its name, with `_` for dots, at which a key ends, and
//! for slashes; a mirror image's ends in `-mirrored`. A first, hidden member, which WebDataset
//! passes over, holds the names as they are and where the codes come from.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rows::{Gathered, Row, Rows, Shape};
use super::{Codes, FORMAT, Origin, damaged, npy};
use crate::error::{Context, Result};
use crate::store::atomic;
use crate::store::bundle::check_format;
use crate::store::npz::{Element, Npy, npy_header};

const MEMBER: &str = ".rdpm-codes.json";

#[derive(Serialize, Deserialize)]
struct About {
    format: String,
    #[serde(flatten)]
    origin: Origin,
    images: usize,
    names: Vec<String>,
    mirrored: Vec<bool>,
}

pub(super) fn write(codes: &Codes, path: &Path) -> Result<()> {
    let rows = Rows::of(codes)?;
    let Shape {
        steps,
        height,
        width,
        embed_dim,
    } = rows.shape;
    let element = npy::element(codes.origin.codebook_size);
    let codes_header = npy_header(element, &[steps, height, width]);
    let latents_header = npy_header(Element::F32, &[embed_dim, height, width]);
    let noise_header = npy_header(Element::F32, &[steps, embed_dim, height, width]);
    let about = serde_json::to_vec(&About {
        format: FORMAT.to_string(),
        origin: codes.origin.clone(),
        images: codes.len(),
        names: codes.names.clone(),
        mirrored: codes.mirrored.clone(),
    })?;
    let floats = |head: &[u8], values: &[f32]| {
        let values = values.iter().flat_map(|x| x.to_le_bytes());
        head.iter().copied().chain(values).collect::<Vec<u8>>()
    };
    atomic::write_with(path, |file| {
        let mut tar = tar::Builder::new(file);
        add(&mut tar, MEMBER, &about)?;
        for image in 0..codes.len() {
            let name = codes.names.get(image).map_or("", String::as_str);
            let key = key(image, name, codes.mirrored.get(image) == Some(&true));
            let values = npy::packed(rows.codes_of(image), element);
            let array: Vec<u8> = codes_header.iter().copied().chain(values).collect();
            add(&mut tar, &format!("{key}.codes.npy"), &array)?;
            if let Some(label) = codes.labels.get(image) {
                add(
                    &mut tar,
                    &format!("{key}.cls"),
                    label.to_string().as_bytes(),
                )?;
            }
            if let Some(latents) = rows.latents_of(image) {
                let array = floats(&latents_header, latents);
                add(&mut tar, &format!("{key}.latents.npy"), &array)?;
            }
            if let Some(noise) = rows.noise_of(image) {
                let array = floats(&noise_header, noise);
                add(&mut tar, &format!("{key}.noise.npy"), &array)?;
            }
        }
        Ok(tar.finish()?)
    })
}

fn key(image: usize, name: &str, mirrored: bool) -> String {
    let mut key = format!("{image:08}");
    if !name.is_empty() {
        key += &format!("-{}", name.replace(['/', '.'], "_"));
    }
    if mirrored {
        key += "-mirrored";
    }
    key
}

fn add(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes)
}

/// Whether the tar at `path` begins as a shard of codes.
pub(super) fn is_codes(path: &Path) -> bool {
    let first = || -> Option<bool> {
        let mut tar = tar::Archive::new(File::open(path).ok()?);
        let first = tar.entries().ok()?.next()?.ok()?;
        Some(&*first.path_bytes() == MEMBER.as_bytes())
    };
    first().unwrap_or(false)
}

pub(super) fn read(path: &Path) -> Result<Codes> {
    let file = File::open(path).with_context(|| format!("could not read {}", path.display()))?;
    let mut tar = tar::Archive::new(BufReader::with_capacity(1 << 20, file));
    let broken = |e: std::io::Error| damaged(path, format!("the tar is damaged ({e})"));
    let (mut about, mut members) = (None, Vec::new());
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        // A sparse member may claim any size.
        if !entry.header().entry_type().is_file() {
            return Err(damaged(
                path,
                format!("its member `{name}` is no plain file"),
            ));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 != size {
            return Err(damaged(path, "the tar ends early".into()));
        }
        match about {
            None if name == MEMBER => about = Some(parsed(path, &bytes)?),
            None => {
                return Err(damaged(
                    path,
                    format!("its first member is `{name}`, expected {MEMBER}"),
                ));
            }
            Some(_) => members.push((name, bytes)),
        }
    }
    let Some(about) = about else {
        return Err(damaged(path, "the tar is empty".into()));
    };
    let mut gathered = Gathered::new(path);
    let mut members = members.into_iter().peekable();
    let mut image = 0;
    while let Some((name, _)) = members.peek() {
        let key = match name.split_once('.') {
            Some((key, _)) => key.to_string(),
            None => return Err(damaged(path, format!("`{name}` is no member of an image"))),
        };
        let (mut shape, mut row) = (None, Row::default());
        let is_of_key = |name: &str| name.split_once('.').is_some_and(|(k, _)| k == key);
        while let Some((name, bytes)) = members.next_if(|(name, _)| is_of_key(name)) {
            let bad = |error: crate::error::Error| damaged(path, format!("`{name}`: {error:#}"));
            match name[key.len()..].trim_start_matches('.') {
                "cls" => {
                    let label = String::from_utf8_lossy(&bytes).trim().parse();
                    row.label = Some(label.map_err(|e| bad(crate::error::Error::new(e)))?);
                }
                "codes.npy" => {
                    let array = Npy::parse(&bytes).map_err(bad)?;
                    row.codes = array.codes().map_err(bad)?;
                    shape = <[usize; 3]>::try_from(array.shape).ok();
                }
                "latents.npy" => {
                    let array = Npy::parse(&bytes).map_err(bad)?;
                    row.latents = Some(array.floats().map_err(bad)?);
                }
                "noise.npy" => {
                    let array = Npy::parse(&bytes).map_err(bad)?;
                    row.noise = Some(array.floats().map_err(bad)?);
                }
                _ => return Err(damaged(path, format!("`{name}` is not part of codes"))),
            }
        }
        let Some([steps, height, width]) = shape else {
            return Err(damaged(path, format!("`{key}` has no codes [T,h,w]")));
        };
        let floats = row.latents.as_ref().map(Vec::len);
        let floats = floats.or(row.noise.as_ref().map(|noise| noise.len() / steps.max(1)));
        let shape = Shape {
            steps,
            height,
            width,
            embed_dim: floats.unwrap_or(0) / (height * width).max(1),
        };
        if !about.names.is_empty() {
            row.name = about.names.get(image).cloned();
        }
        row.mirrored = about.mirrored.get(image).copied().unwrap_or(false);
        gathered.push(shape, row)?;
        image += 1;
    }
    if about.images != image {
        let expected = about.images;
        return Err(damaged(path, format!("{image} images of {expected}")));
    }
    gathered.finish(about.origin)
}

fn parsed(path: &Path, bytes: &[u8]) -> Result<About> {
    let bad = |e| damaged(path, format!("its {MEMBER} is damaged ({e})"));
    let about: serde_json::Value = serde_json::from_slice(bytes).map_err(bad)?;
    check_format(path, about["format"].as_str(), FORMAT)?;
    serde_json::from_value(about).map_err(bad)
}
