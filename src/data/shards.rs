//! Tar shards: `.tar` is indexed by its headers and read at random; a gzipped one is decompressed
//! into memory.
//!
//! What in it is data is [`super::selection`]'s to say. A shard that ends early (within a member,
//! or without tar's closing block) is an error that says how far it is whole; where bad data may be
//! skipped, what is whole is kept. Zeros behind a gzip stream or a closing block are padding; of
//! anything else there a warning tells.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;

use super::image_kind::{ENDINGS, other_content};
use super::members::{Members, members};
use super::part::{Kind, OnDisk, Part, Place, Shard};
use super::selection::select;
use super::stamp::Stamp;
use super::transient::{Patient, patiently};
use crate::error::{Context, Error, Result, hinted};

/// What all gzipped shards of a source may take in memory.
pub(super) const GZIP_LIMIT: u64 = 2 << 30;

/// Whether a file of this name is taken for a shard; whether it is gzipped, its content says.
pub(super) fn is_shard_name(name: &str) -> bool {
    shard_ending(name).is_some()
}

/// The ending that makes a file of this name a shard.
pub(super) fn shard_ending(name: &str) -> Option<&'static str> {
    let ends = |ending: &&str| {
        let at = name.len().checked_sub(ending.len());
        let last = at.and_then(|at| name.get(at..));
        last.is_some_and(|last| last.eq_ignore_ascii_case(ending))
    };
    [".tar.gz", ".tgz", ".tar"].into_iter().find(ends)
}

/// How a shard of this name is compressed, if that cannot be read.
pub(super) fn other_compression(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let known = [
        (".tar.zst", "zstd"),
        (".tar.xz", "xz"),
        (".txz", "xz"),
        (".tar.bz2", "bzip2"),
        (".tbz2", "bzip2"),
        (".tar.lz4", "lz4"),
        (".zip", "zip"),
        (".7z", "7-Zip"),
    ];
    let known = known.into_iter().find(|(ending, _)| name.ends_with(ending));
    known.map(|(_, name)| name)
}

/// Finds the images of the shard at `path`. `unpacked` counts the bytes that gzipped shards take,
/// up to `limit`.
pub(super) fn scan(path: &Path, skip_bad: bool, unpacked: &AtomicU64, limit: u64) -> Result<Part> {
    let context = || format!("could not read the shard {}", path.display());
    let name = path.display();
    let (file, stamp) = patiently(&name, || {
        let file = File::open(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        Ok((file, stamp))
    })
    .with_context(context)?;
    let mut part = Part::new(path.to_path_buf(), Kind::Shard);
    part.found_in.push(("".into(), stamp));
    let on_disk = OnDisk { file: &file, path };
    let mut start = [0u8; 2];
    let is_gzip = match on_disk.read_at(&mut start, 0) {
        Ok(()) => start == [0x1F, 0x8B],
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => false,
        Err(e) => return Err(Error::from(e).context(context())),
    };
    let mut damage = None;
    let found = if is_gzip {
        let unpacked = unpack(&file, path, unpacked, limit)?;
        damage = unpacked.damage;
        if unpacked.behind > 0 {
            let text = format!(
                "what lies behind its gzip stream is passed over ({} bytes)",
                unpacked.behind
            );
            part.notice(true, text);
        }
        let found = index(&unpacked.tar.as_slice(), &mut part);
        part.memory = Some(unpacked.tar);
        found
    } else {
        index(&on_disk, &mut part)
    };
    // A gzip stream that ended early explains why its tar does.
    damage = damage.or(found.damage);
    let whole = part.found.len();
    if let Some(damage) = damage {
        let message = format!("{}: {damage}; {whole} images are whole", path.display());
        if !skip_bad {
            return Err(hinted(
                message,
                "make the shard again, or go on with what is whole by --skip-bad-images",
            ));
        }
        tracing::warn!("{message}");
        part.bad += 1;
    }
    if found.is_empty {
        let reason = "an empty tar: it holds no files".to_string();
        part.notice(true, reason.clone());
        part.empty = Some(reason);
    } else if whole + part.bad == 0 {
        return Err(hinted(
            format!(
                "{}: no images in this shard{}",
                path.display(),
                part.instead()
            ),
            format!("images end in {ENDINGS}"),
        ));
    }
    Ok(part)
}

/// What [`index`] says of a shard beside its images.
struct Found {
    damage: Option<String>,
    /// It is whole, and holds no members.
    is_empty: bool,
}

/// Adds the images of `tar` to `part`, as far as it is whole.
fn index(tar: &impl Shard, part: &mut Part) -> Found {
    let (members, damage) = members(tar);
    let Members {
        files,
        folders,
        links,
        followed,
        archives,
        end,
        behind,
    } = members;
    if archives > 1 {
        let text = format!(
            "{archives} tar archives one behind another; all are read, where most readers stop at \
             the first's end"
        );
        part.notice(true, text);
    }
    if followed > 0 {
        let text = format!(
            "{followed} links are read as the files they lead to; WebDataset passes over links"
        );
        part.notice(false, text);
    }
    if behind > 0 && !is_zero(tar, behind) {
        let text = format!("what lies behind its closing block is no tar ({behind} bytes)");
        part.notice(true, text);
    }
    let is_empty = damage.is_none() && files.is_empty() && folders.is_empty();
    let damage = damage.map(|damage| match (tar.length(), first_bytes(tar)) {
        (Ok(0), _) => "an empty file".to_string(),
        (_, start) if end == 0 => match other_content(&start) {
            Some(other) => format!("tar damaged after 0 bytes (it is {other})"),
            None => format!("tar damaged after 0 bytes ({damage})"),
        },
        _ => format!("tar damaged after {end} bytes ({damage})"),
    });
    part.passed.links = links;
    select(files, folders, &[], part, &mut |file, limit| {
        file.place.start(tar, limit + 1)
    });
    Found { damage, is_empty }
}

fn first_bytes(tar: &impl Shard) -> Vec<u8> {
    let size = tar.length().unwrap_or(0).min(512);
    let place = Place::Member { offset: 0, size };
    place.read(tar).unwrap_or_default()
}

/// Whether the last `count` bytes are padding: less than a block of zeros.
fn is_zero(tar: &impl Shard, count: u64) -> bool {
    let Ok(length) = tar.length() else {
        return false;
    };
    let mut bytes = vec![0; count.min(512) as usize];
    let read = tar.read_at(&mut bytes, length - count);
    count < 512 && read.is_ok() && bytes.iter().all(|byte| *byte == 0)
}

struct Unpacked {
    tar: Vec<u8>,
    /// What is wrong if the stream ends early.
    damage: Option<String>,
    /// Bytes behind the stream that are neither padding nor another stream.
    behind: u64,
}

/// Decompresses all streams of the file, one behind another, with zeros between and behind them as
/// on a tape.
fn unpack(file: &File, path: &Path, unpacked: &AtomicU64, limit: u64) -> Result<Unpacked> {
    let context = || format!("could not read the shard {}", path.display());
    let length = file.metadata().with_context(context)?.len();
    let name = path.display();
    let file = Patient {
        inner: file,
        what: &name,
    };
    let (mut input, mut tar) = (BufReader::with_capacity(1 << 16, file), Vec::new());
    loop {
        let buffer = input.fill_buf().with_context(context)?;
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        let next = buffer.get(zeros).copied();
        input.consume(zeros);
        match next {
            Some(0x1F) => {}
            None if zeros > 0 => continue,
            _ => {
                let mut place: &File = input.get_ref().inner;
                let read = place.stream_position().with_context(context)?;
                let behind = length.saturating_sub(read) + input.buffer().len() as u64;
                return Ok(Unpacked {
                    tar,
                    damage: None,
                    behind,
                });
            }
        }
        let mut stream = GzDecoder::new(input);
        loop {
            let before = tar.len();
            let read = stream.by_ref().take(1 << 20).read_to_end(&mut tar);
            let grown = (tar.len() - before) as u64;
            if unpacked.fetch_add(grown, Ordering::Relaxed) + grown > limit {
                return Err(hinted(
                    format!(
                        "{}: the gzipped shards take more than {} MiB decompressed",
                        path.display(),
                        limit >> 20
                    ),
                    "gzip cannot be read at random: unpack the shards with `gunzip -k` and name the \
                     .tar files",
                ));
            }
            match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let damage =
                        format!("gzip damaged after {} unpacked bytes ({error})", tar.len());
                    return Ok(Unpacked {
                        tar,
                        damage: Some(damage),
                        behind: 0,
                    });
                }
            }
        }
        input = stream.into_inner();
    }
}
