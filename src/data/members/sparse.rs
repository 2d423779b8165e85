//! Sparse members: the map of the stored data, in GNU's old format and in PAX's 0.0, 0.1 and 1.0.

use std::sync::Arc;

use super::super::part::{Piece, Place, Shard, Sparse};
use super::Damage;
use super::header::{BLOCK, Header, Pax, number};

/// Maximum size: a member is read into memory as a whole, and holes take no space in a shard.
const MAX_SIZE: u64 = 1 << 30;

/// Maximum number of pieces per member.
const MAX_PIECES: usize = 1 << 20;

/// GNU's old format: four pieces in the header, the others in blocks after it. Returns the
/// position, and the end of the data.
pub(super) fn old(tar: &impl Shard, data: u64, size: u64, header: &Header) -> Damage<(Place, u64)> {
    let Some(gnu) = header.gnu() else {
        return Err("sparse, without GNU's header".to_string());
    };
    let (mut map, mut data) = (Vec::new(), data);
    let mut take = |pieces: &[tar::GnuSparseHeader]| -> Damage<()> {
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let numbers = number(&piece.offset).zip(number(&piece.numbytes));
            let (at, length) = numbers.ok_or("its map of holes is no number")?;
            map.extend([at, length]);
        }
        Ok(())
    };
    take(&gnu.sparse)?;
    let mut more = gnu.is_extended();
    while more {
        let mut block = tar::GnuExtSparseHeader::new();
        let read = tar.read_at(block.as_mut_bytes(), data);
        read.map_err(|_| "its map of holes ends early")?;
        take(block.sparse())?;
        (more, data) = (block.is_extended(), data + BLOCK);
    }
    let real_size = number(&gnu.realsize).ok_or("its size is no number")?;
    let place = place(data, size, real_size, &map);
    Ok((readable(place), data.saturating_add(size)))
}

/// PAX's formats.
pub(super) fn pax(tar: &impl Shard, data: u64, size: u64, pax: &Pax) -> Place {
    let real_size = pax.real_size.unwrap_or(0);
    readable(match &pax.map {
        Some(map) => place(data, size, real_size, map),
        None => map_before_data(tar, data, size)
            .and_then(|(map, taken)| place(data + taken, size - taken, real_size, &map)),
    })
}

/// The position, or why it cannot be read; the members after it are intact.
fn readable(place: Damage<Place>) -> Place {
    place.unwrap_or_else(|reason| Place::Refused(format!("sparse, and {reason}").into()))
}

/// Version 1.0: a count, then alternating offsets and lengths, one decimal number per line, in
/// whole blocks. Also returns their length in bytes.
fn map_before_data(tar: &impl Shard, data: u64, size: u64) -> Damage<(Vec<u64>, u64)> {
    let wrong = || "its map of holes cannot be read".to_string();
    let (mut line, mut numbers) = (Vec::new(), Vec::new());
    for block in 0..size / BLOCK {
        let mut bytes = [0; BLOCK as usize];
        let read = tar.read_at(&mut bytes, data + block * BLOCK);
        read.map_err(|e| e.to_string())?;
        for byte in bytes {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let number = std::str::from_utf8(&line).map_err(|_| wrong())?;
            numbers.push(number.parse::<usize>().map_err(|_| wrong())?);
            line.clear();
            let count = numbers[0];
            if count > MAX_PIECES {
                return Err(wrong());
            }
            if numbers.len() == 1 + 2 * count {
                let map = numbers[1..].iter().map(|number| *number as u64);
                return Ok((map.collect(), (block + 1) * BLOCK));
            }
        }
    }
    Err(wrong())
}

/// Checks the map and places the pieces one after another, from `data` on.
fn place(data: u64, stored: u64, size: u64, map: &[u64]) -> Damage<Place> {
    if size > MAX_SIZE {
        return Err(format!(
            "of {} MiB, more than the {} that are read",
            size >> 20,
            MAX_SIZE >> 20
        ));
    }
    let (mut pieces, mut taken, mut filled) = (Vec::new(), 0, 0);
    for pair in map.chunks(2) {
        let &[at, length] = pair else {
            return Err("its map of holes lacks a length".to_string());
        };
        match at.checked_add(length) {
            Some(end) if at >= filled && end <= size => filled = end,
            _ => return Err("its map of holes is out of order".to_string()),
        }
        if length > 0 {
            let offset = data + taken;
            pieces.push(Piece { at, offset, length });
            taken += length;
        }
    }
    match taken <= stored {
        true => Ok(Place::Sparse(Arc::new(Sparse { size, pieces }))),
        false => Err(format!(
            "its map of holes wants {taken} bytes, and {stored} are stored"
        )),
    }
}
