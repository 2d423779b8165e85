//! Huffman codes as files define them, and tables for decoding them quickly (T.81, annex C and
//! F.2.2.3).

use super::bits::{Bits, extend};
use super::{Result, damaged};

/// The number of codes of each length from 1 to 16, and their symbols in order.
#[derive(Clone)]
pub struct Codes {
    pub counts: [u8; 16],
    pub values: [u8; 256],
}

/// Bits of a table lookup, which cover most codes and their values.
const LOOK: u32 = 9;

/// A table entry: the number of bits to skip in the low five bits; then whether these include the
/// value; the symbol; the value itself. 0 marks a longer code.
const WITH_VALUE: u32 = 1 << 5;

pub struct Huffman {
    look: [u32; 1 << LOOK],
    /// By length: one more than the last code, left-aligned to 16 bits; and the offset from a code
    /// to its symbol's index.
    ends: [u32; 17],
    offsets: [i32; 17],
    values: [u8; 256],
}

impl Huffman {
    /// `largest`: the largest symbol that a table of DC differences may contain.
    pub fn new(codes: Option<&Option<Codes>>, largest: Option<u8>) -> Result<Huffman> {
        let Some(Some(codes)) = codes else {
            return damaged("a scan uses a Huffman table that is not there");
        };
        let mut table = Huffman {
            look: [0; 1 << LOOK],
            ends: [0; 17],
            offsets: [0; 17],
            values: codes.values,
        };
        let (mut code, mut symbol) = (0_u32, 0_usize);
        for length in 1..=16_u32 {
            let count = usize::from(codes.counts[length as usize - 1]);
            table.offsets[length as usize] = symbol as i32 - code as i32;
            for _ in 0..count {
                let Some(&value) = codes.values.get(symbol) else {
                    return damaged("a wrong Huffman table");
                };
                if largest.is_some_and(|largest| value > largest) {
                    return damaged("a wrong Huffman table of differences");
                }
                if length <= LOOK && code < 1 << length {
                    table.enter(code, length, value);
                }
                code += 1;
                symbol += 1;
            }
            // No code consists only of ones.
            if count > 0 && code >= 1 << length {
                return damaged("a wrong Huffman table");
            }
            table.ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// Sets all entries that begin with a code.
    fn enter(&mut self, code: u32, length: u32, symbol: u8) {
        let size = u32::from(symbol & 15);
        let first = code << (LOOK - length);
        for low in 0..1 << (LOOK - length) {
            let mut entry = length | u32::from(symbol) << 8;
            if size > 0 && length + size <= LOOK {
                let bits = (low as u32) >> (LOOK - length - size);
                entry = (length + size) | WITH_VALUE | u32::from(symbol) << 8;
                entry |= u32::from(extend(bits, size) as i16 as u16) << 16;
            }
            self.look[(first as usize) | low] = entry;
        }
    }

    /// Decodes the next symbol, of at most 16 bits, which must be available.
    #[inline(always)]
    pub fn symbol(&self, bits: &mut Bits) -> Result<u32> {
        let entry = self.look[bits.peek(LOOK) as usize];
        if entry == 0 {
            return self.long(bits);
        }
        let symbol = entry >> 8 & 255;
        let value = if entry & WITH_VALUE == 0 {
            0
        } else {
            symbol & 15
        };
        bits.skip((entry & 31) - value);
        Ok(symbol)
    }

    /// Decodes the next symbol and the value after it, whose length is the symbol's low half.
    #[inline(always)]
    pub fn symbol_and_value(&self, bits: &mut Bits) -> Result<(u32, i32)> {
        let entry = self.look[bits.peek(LOOK) as usize];
        if entry & WITH_VALUE != 0 {
            bits.skip(entry & 31);
            return Ok((entry >> 8 & 255, (entry as i32) >> 16));
        }
        let symbol = match entry {
            0 => self.long(bits)?,
            _ => {
                bits.skip(entry & 31);
                entry >> 8
            }
        };
        Ok((symbol, bits.signed(symbol & 15)))
    }

    #[cold]
    fn long(&self, bits: &mut Bits) -> Result<u32> {
        let next = bits.peek(16);
        for length in LOOK + 1..=16 {
            if next < self.ends[length as usize] {
                let code = (next >> (16 - length)) as i32;
                bits.skip(length);
                let symbol = (code + self.offsets[length as usize]) as usize;
                return Ok(self.values[symbol & 255].into());
            }
        }
        bits.check()?;
        damaged("a wrong Huffman code")
    }
}

/// The tables of annex K.3 for luma and chroma, DC and AC.
pub fn standard() -> [(Codes, Codes); 2] {
    let codes = |counts: [u8; 16], symbols: &[u8]| {
        let mut values = [0; 256];
        values[..symbols.len()].copy_from_slice(symbols);
        Codes { counts, values }
    };
    let categories: [u8; 12] = std::array::from_fn(|i| i as u8);
    [
        (
            codes(
                [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
                &categories,
            ),
            codes([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], &LUMA),
        ),
        (
            codes(
                [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
                &categories,
            ),
            codes([0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119], &CHROMA),
        ),
    ]
}

const LUMA: [u8; 162] = [
    1, 2, 3, 0, 4, 17, 5, 18, 33, 49, 65, 6, 19, 81, 97, 7, 34, 113, 20, 50, 129, 145, 161, 8, 35,
    66, 177, 193, 21, 82, 209, 240, 36, 51, 98, 114, 130, 9, 10, 22, 23, 24, 25, 26, 37, 38, 39,
    40, 41, 42, 52, 53, 54, 55, 56, 57, 58, 67, 68, 69, 70, 71, 72, 73, 74, 83, 84, 85, 86, 87, 88,
    89, 90, 99, 100, 101, 102, 103, 104, 105, 106, 115, 116, 117, 118, 119, 120, 121, 122, 131,
    132, 133, 134, 135, 136, 137, 138, 146, 147, 148, 149, 150, 151, 152, 153, 154, 162, 163, 164,
    165, 166, 167, 168, 169, 170, 178, 179, 180, 181, 182, 183, 184, 185, 186, 194, 195, 196, 197,
    198, 199, 200, 201, 202, 210, 211, 212, 213, 214, 215, 216, 217, 218, 225, 226, 227, 228, 229,
    230, 231, 232, 233, 234, 241, 242, 243, 244, 245, 246, 247, 248, 249, 250,
];

const CHROMA: [u8; 162] = [
    0, 1, 2, 3, 17, 4, 5, 33, 49, 6, 18, 65, 81, 7, 97, 113, 19, 34, 50, 129, 8, 20, 66, 145, 161,
    177, 193, 9, 35, 51, 82, 240, 21, 98, 114, 209, 10, 22, 36, 52, 225, 37, 241, 23, 24, 25, 26,
    38, 39, 40, 41, 42, 53, 54, 55, 56, 57, 58, 67, 68, 69, 70, 71, 72, 73, 74, 83, 84, 85, 86, 87,
    88, 89, 90, 99, 100, 101, 102, 103, 104, 105, 106, 115, 116, 117, 118, 119, 120, 121, 122, 130,
    131, 132, 133, 134, 135, 136, 137, 138, 146, 147, 148, 149, 150, 151, 152, 153, 154, 162, 163,
    164, 165, 166, 167, 168, 169, 170, 178, 179, 180, 181, 182, 183, 184, 185, 186, 194, 195, 196,
    197, 198, 199, 200, 201, 202, 210, 211, 212, 213, 214, 215, 216, 217, 218, 226, 227, 228, 229,
    230, 231, 232, 233, 234, 242, 243, 244, 245, 246, 247, 248, 249, 250,
];
