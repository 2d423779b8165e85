//! Reads the bits of an entropy-coded segment: removes stuffed zeros, and ends at a marker (T.81,
//! F.2.2.5).

use super::markers::Reader;
use super::{Result, damaged};

pub struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, starting at the highest; bits below `count` are not valid.
    next: u64,
    count: u32,
    /// Number of bits among them that are not in the file: zeros after its end.
    made_up: u32,
}

impl<'a> Bits<'a> {
    pub fn new(reader: &Reader<'a>) -> Bits<'a> {
        Bits {
            data: reader.data,
            at: reader.at,
            next: 0,
            count: 0,
            made_up: 0,
        }
    }

    /// Moves the reader past these bits; whole unused bytes are stray.
    pub fn leave(&mut self, reader: &mut Reader<'a>) -> Result<()> {
        self.check()?;
        reader.stray += ((self.count - self.made_up) / 8) as usize;
        reader.at = self.at;
        *self = Bits::new(reader);
        Ok(())
    }

    /// Checks that only bits in the file were used.
    #[inline(always)]
    pub fn check(&self) -> Result<()> {
        match self.count < self.made_up {
            true => damaged("truncated, a scan ends early"),
            false => Ok(()),
        }
    }

    /// Makes at least 32 bits available.
    #[inline(always)]
    pub fn fill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(bytes) = self.data.get(self.at..self.at + 8) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            let word = u64::from_be_bytes(eight);
            // No byte is FF: the complement has no zero byte.
            let inverse = !word;
            let zero = inverse.wrapping_sub(0x0101_0101_0101_0101) & word & 0x8080_8080_8080_8080;
            if zero == 0 {
                let bytes = (63 - self.count) / 8;
                self.next |= word >> self.count;
                self.at += bytes as usize;
                self.count += bytes * 8;
                return;
            }
        }
        self.fill_by_bytes();
    }

    #[cold]
    #[inline(never)]
    fn fill_by_bytes(&mut self) {
        // Below `count` may be the first bits of the byte that is read next.
        self.next &= !(u64::MAX >> self.count);
        while self.count <= 48 {
            let byte = match self.data.get(self.at) {
                Some(0xFF) => {
                    let mut end = self.at + 1;
                    while self.data.get(end) == Some(&0xFF) {
                        end += 1;
                    }
                    if self.data.get(end) != Some(&0) {
                        self.count += 8;
                        self.made_up += 8;
                        continue;
                    }
                    self.at = end + 1;
                    0xFF
                }
                Some(&byte) => {
                    self.at += 1;
                    byte
                }
                None => {
                    self.count += 8;
                    self.made_up += 8;
                    continue;
                }
            };
            self.next |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    /// The next `n` bits, 1 to 16, which must be available.
    #[inline(always)]
    pub fn peek(&self, n: u32) -> u32 {
        (self.next >> (64 - n)) as u32
    }

    #[inline(always)]
    pub fn skip(&mut self, n: u32) {
        self.next <<= n;
        // Damaged data may request more bits than there are; `check` detects this.
        self.count = self.count.wrapping_sub(n);
    }

    #[inline(always)]
    pub fn take(&mut self, n: u32) -> u32 {
        let bits = self.peek(n);
        self.skip(n);
        bits
    }

    #[inline(always)]
    pub fn flag(&mut self) -> bool {
        self.fill();
        self.take(1) != 0
    }

    /// Reads `n` bits, 0 to 16, as a number whose lower half of the range is negative (T.81, F.12).
    #[inline(always)]
    pub fn signed(&mut self, n: u32) -> i32 {
        match n {
            0 => 0,
            _ => extend(self.take(n), n),
        }
    }
}

/// T.81, figure F.12: without a leading 1 a value of `n` bits is negative.
#[inline(always)]
pub fn extend(bits: u32, n: u32) -> i32 {
    let bits = bits as i32;
    match bits < 1 << (n - 1) {
        true => bits - (1 << n) + 1,
        false => bits,
    }
}
