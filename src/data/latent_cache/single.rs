//! Version 1 of a cache of latents: one safetensors file with `latents` BF16 [F,N,h,w,d] and
//! `labels` U32 [N]. Its metadata have the SHA-256 of all bytes after the header, which is checked
//! on opening. It is read, and no longer written.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};

use super::super::transient::Patient;
use super::part::{Entry, HEADER, Open, Part};
use super::{CacheMeta, compare};
use crate::error::{Context, Error, Result, hinted};
use crate::store::bundle::check_format;
use crate::store::digest::hex;
use crate::store::foreign;
use crate::store::safetensors::Reader;

const FORMAT: &str = "rdpm-latents/1";

const REMEDY: &str = "remove the file, or name another with --cache: it is made again";

/// Opens the file at `path`, made from `expected`, as a part that is the whole cache.
pub(super) fn open(path: &Path, expected: &CacheMeta) -> Result<Part> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("could not open {name}"))?;
    let reading = || format!("could not read {name}");
    let length = file.metadata().with_context(reading)?.len();
    let damaged =
        |what: &dyn std::fmt::Display| refused(path, format!("not a whole latent cache ({what})"));
    let mut rest = Patient {
        inner: &file,
        what: &name,
    };
    let mut header = Vec::new();
    let read = rest.by_ref().take(HEADER as u64).read_to_end(&mut header);
    read.with_context(reading)?;
    let is_ours = header.first_chunk() == Some(&((HEADER - 8) as u64).to_le_bytes());
    let found = header.get(8..).filter(|_| is_ours);
    let found = found.and_then(|json| serde_json::from_slice::<Metadata>(json).ok());
    let found = match found {
        Some(found) => found,
        None => {
            another_kind(path)?;
            return Err(damaged(&"its header is not one"));
        }
    };
    let metadata = found.metadata().clone().unwrap_or_default();
    let format = metadata.get("format").map(String::as_str);
    check_format(path, format, FORMAT)?;
    compare(path, &metadata, expected, REMEDY)?;
    let info = |tensor| {
        let info = found.info(tensor);
        info.ok_or_else(|| damaged(&format!("it has no `{tensor}`")))
    };
    let (latents, labels) = (info("latents")?, info("labels")?);
    let (h_w_d, count) = (expected.shape, labels.shape.first().copied().unwrap_or(0));
    let shape = [expected.copies(), count, h_w_d[0], h_w_d[1], h_w_d[2]];
    if latents.dtype != Dtype::BF16 || labels.dtype != Dtype::U32 || latents.shape != shape {
        let found = format!(
            "{:?} {:?}, expected BF16 {shape:?}",
            latents.dtype, latents.shape
        );
        return Err(refused(path, format!("its latents are {found}")));
    }
    let end = latents.data_offsets.1;
    if header.len() < HEADER
        || latents.data_offsets != (0, shape.iter().product::<usize>() * 2)
        || labels.data_offsets != (end, end + count * 4)
        || length != (HEADER + end + count * 4) as u64
    {
        return Err(damaged(&format!("it has {length} bytes")));
    }
    let (mut digest, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    let (mut labels, mut at) = (Vec::new(), 0);
    loop {
        let read = rest.read(&mut piece).with_context(reading)?;
        if read == 0 {
            break;
        }
        digest.update(&piece[..read]);
        labels.extend_from_slice(&piece[read.min(end.saturating_sub(at))..read]);
        at += read;
    }
    let sha256 = hex(&digest.finalize());
    if Some(&sha256) != metadata.get("sha256") {
        return Err(damaged(&"its checksum differs"));
    }
    let (labels, _) = labels.as_chunks::<4>();
    let entry = Entry {
        images: count,
        bytes: length,
        sha256,
    };
    let labels = labels.iter().map(|b| u32::from_le_bytes(*b)).collect();
    Ok(Part::new(path.to_path_buf(), entry, expected).opened(Open {
        file,
        header,
        labels,
        checksums: None,
    }))
}

/// Refuses a file that is something else by name: a hint to remove it would lose it.
fn another_kind(path: &Path) -> Result<()> {
    if foreign::of(path).is_some_and(|kind| kind != foreign::SAFETENSORS) {
        return foreign::refusal(path, "a cache of latents").map_or(Ok(()), Err);
    }
    match Reader::open(path).and_then(|reader| reader.header()) {
        Ok(header) => check_format(
            path,
            header.metadata.get("format").map(String::as_str),
            FORMAT,
        ),
        Err(_) => Ok(()),
    }
}

fn refused(path: &Path, what: String) -> Error {
    hinted(format!("{}: {what}", path.display()), REMEDY)
}
