//! Work that ranks do in turn: parcel i of a range is made by rank i mod W, and rank 0 takes all of
//! them in order. What a parcel is does not depend on the number of ranks, so neither does what
//! rank 0 gets.

use std::ops::Range;

use super::World;
use crate::error::{Context, Result};

/// What one rank makes and rank 0 takes.
pub trait Parcel: Sized {
    fn pack(&self, bytes: &mut Bytes);
    fn unpack(bytes: &mut Bytes) -> Result<Self>;
}

impl World {
    /// Makes the parcels of `range`, this rank's of them, and takes all of them at rank 0. Once a
    /// rank asks to `stop`, all stop after what they are making, and get the number of the first
    /// parcel that is not made.
    ///
    /// A rank that then fails because it was stopped calls [`World::part`] first: otherwise it ends
    /// the others, wherever they are.
    ///
    /// Errors: those of `make` and `take`; a lost rank.
    pub fn parcels<T: Parcel>(
        &self,
        range: Range<usize>,
        stop: impl Fn() -> bool,
        mut make: impl FnMut(usize) -> Result<T>,
        mut take: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<Option<usize>> {
        let (rank, size) = (self.rank(), self.size());
        for (round, first) in range.clone().step_by(size).enumerate() {
            let mine = (first + rank < range.end).then(|| make(first + rank));
            let mine = mine.transpose()?;
            let next = (first + size).min(range.end);
            self.at(round as u64 + 1);
            if size == 1 {
                mine.map_or(Ok(()), |parcel| take(first, parcel))?;
                if stop() {
                    return Ok(Some(next));
                }
                continue;
            }
            let mut bytes = Bytes::default();
            // Rank 0 keeps its own as it is.
            if let Some(parcel) = mine.as_ref().filter(|_| !self.is_first()) {
                parcel.pack(&mut bytes);
            }
            let others = self.gather_at_first(bytes.into_vec())?.into_iter().skip(1);
            // The others go on while rank 0 takes.
            let stopped = self.agree(u8::from(stop()))? != 0;
            if let Some(parcel) = mine.filter(|_| self.is_first()) {
                take(first, parcel)?;
            }
            for (i, bytes) in (first + 1..range.end).zip(others) {
                let mut bytes = Bytes::from(bytes);
                let parcel = T::unpack(&mut bytes).and_then(|parcel| {
                    bytes.end()?;
                    Ok(parcel)
                });
                take(
                    i,
                    parcel.with_context(|| format!("what rank {} sent", i - first))?,
                )?;
            }
            if stopped {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }
}

/// The bytes of a parcel, little-endian: written at the end, read from the start.
#[derive(Debug, Clone, Default)]
pub struct Bytes {
    bytes: Vec<u8>,
    at: usize,
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }
}

impl Bytes {
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }

    pub fn put_u32(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    pub fn put_u64(&mut self, number: u64) {
        self.bytes.extend(number.to_le_bytes());
    }

    /// Bytes and how many there are.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_u64(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Values and how many bytes they take.
    pub fn put_f32s(&mut self, values: &[f32]) {
        self.put_u64(values.len() as u64 * 4);
        self.bytes
            .extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }

    /// Values and how many bytes they take.
    pub fn put_f64s(&mut self, values: &[f64]) {
        self.put_u64(values.len() as u64 * 8);
        self.bytes
            .extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }

    /// Numbers and how many bytes they take.
    pub fn put_u32s(&mut self, numbers: &[u32]) {
        self.put_u64(numbers.len() as u64 * 4);
        self.bytes
            .extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    }

    pub fn u32(&mut self) -> Result<u32> {
        let (bytes, _) = self.next(4)?.as_chunks();
        Ok(u32::from_le_bytes(bytes[0]))
    }

    pub fn u64(&mut self) -> Result<u64> {
        let (bytes, _) = self.next(8)?.as_chunks();
        Ok(u64::from_le_bytes(bytes[0]))
    }

    pub fn bytes(&mut self) -> Result<&[u8]> {
        let count = self.u64()?;
        self.next(usize::try_from(count)?)
    }

    pub fn f32s(&mut self) -> Result<Vec<f32>> {
        self.numbers(f32::from_le_bytes)
    }

    pub fn f64s(&mut self) -> Result<Vec<f64>> {
        self.numbers(f64::from_le_bytes)
    }

    pub fn u32s(&mut self) -> Result<Vec<u32>> {
        self.numbers(u32::from_le_bytes)
    }

    fn numbers<const N: usize, T>(&mut self, number: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let (values, rest) = self.bytes()?.as_chunks();
        anyhow::ensure!(rest.is_empty(), "a number is cut");
        Ok(values.iter().map(|bytes| number(*bytes)).collect())
    }

    /// Errors: not all was read.
    pub fn end(&self) -> Result<()> {
        let more = self.bytes.len() - self.at;
        anyhow::ensure!(more == 0, "{more} bytes too many");
        Ok(())
    }

    fn next(&mut self, count: usize) -> Result<&[u8]> {
        let rest = self.bytes.len() - self.at;
        anyhow::ensure!(count <= rest, "it ends early");
        self.at += count;
        Ok(&self.bytes[self.at - count..self.at])
    }
}
