//! `encode --shard-size N`: a set of codes shard by shard, resumed, and shared by processes.

use std::path::Path;

use super::super::part::Part;
use super::batches::{Encoder, Pieces};
use crate::error::{Error, Result, hint, hinted, rehinted};
use crate::store::codes::Format;
use crate::store::codes::set::{self, Manifest};
use crate::world::World;

const KEPT: &str = "whole shards are kept; the same command goes on with the others";

/// What was made.
pub(super) struct Made {
    /// Of this part.
    pub shards: usize,
    /// Of the set.
    pub total: usize,
    /// Shards that were there already.
    pub kept: usize,
    /// Images with codes in all shards of this part; mirror images count.
    pub images: usize,
    /// Images left out of the shards made now.
    pub skipped: usize,
}

/// Writes the shards of `part` that are missing in the folder `out`. Of ranks that divide a set,
/// the first gives what all of them made.
///
/// Errors: `out` holds another set, or a damaged shard; those of reading and writing; a signal that
/// asks to stop.
pub(super) fn write(
    encoder: &Encoder,
    out: &Path,
    format: Format,
    shard_size: usize,
    part: Part,
    world: &World,
) -> Result<Made> {
    let inputs = encoder.inputs;
    let classes = inputs.classes().iter();
    let manifest = Manifest {
        format: Manifest::format(),
        files: format,
        origin: encoder.origin.clone(),
        image_size: inputs.model.config.data.image_size,
        flip: encoder.flip,
        latents: encoder.latents,
        noise: encoder.save_noise,
        classes: classes.map(|class| class.wnid.clone()).collect(),
        data: inputs.source.fingerprint()?,
        images: inputs.source.len(),
        shard_size,
    };
    if world.size() > 1 {
        let manifest = serde_json::to_string(&manifest)?;
        world.same(&[("the set of codes", manifest)])?;
    }
    world.first_then(|| manifest.claim(out))?;
    let (total, mut images, mut kept) = (manifest.shards(), 0, 0);
    let (mut missing, mut done, mut all) = (Vec::new(), 0, 0);
    for shard in part.of(total) {
        let size = manifest.range(shard).len();
        let path = manifest.path(out, shard);
        all += size;
        if path.exists() {
            images += set::check_shard(&path, &manifest)?;
            kept += 1;
            done += size;
        } else {
            missing.push(shard);
        }
    }
    let mut pass = inputs.pass("encode", all, done, KEPT)?;
    for (number, shard) in missing.iter().enumerate() {
        world.at(number as u64);
        let mut pieces = Pieces::default();
        let range = manifest.range(*shard);
        pass.over(range.clone(), |batch| encoder.encode(batch, &mut pieces))?;
        let codes = pieces.join(encoder)?.ok_or_else(|| empty(*shard, range))?;
        images += codes.len();
        let path = manifest.path(out, *shard);
        codes
            .write(&path, format)
            .map_err(|error| going_on(&error))?;
    }
    // Counts of all ranks, once all have made theirs.
    let mut counts = [kept + missing.len(), kept, images, pass.skipped].map(|n| n as u64);
    world.sum_at_first(&mut counts)?;
    let [shards, kept, images, skipped] = counts.map(|n| n as usize);
    Ok(Made {
        shards,
        total,
        kept,
        images,
        skipped,
    })
}

fn empty(shard: usize, range: std::ops::Range<usize>) -> Error {
    hinted(
        format!(
            "no image of shard {shard} could be read, images {} to {} of the data",
            range.start,
            range.end - 1
        ),
        "the warnings above say why; leave those images out, or choose a larger --shard-size and a new folder",
    )
}

/// The error of a shard that could not be written, with what that means for the others.
fn going_on(error: &Error) -> Error {
    match hint(error).filter(|hint| !hint.is_empty()) {
        Some(first) => rehinted(error, format!("{first}; {KEPT}")),
        None => rehinted(error, KEPT),
    }
}
