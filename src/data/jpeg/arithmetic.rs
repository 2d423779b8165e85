//! Arithmetic-coded scans, sequential and progressive (T.81, annex D, F.1.4 and G.1.3).

use super::frame::{Coding, Frame};
use super::markers::Reader;
use super::segments::{NATURAL, Scan, Tables};
use super::walk::{Blocks, Entropy, walk};
use super::{Result, damaged};

/// A statistics bin: the index into [`STATES`] and, in the highest bit, the more probable symbol.
type Bin = u8;

/// The bin with fixed equal probabilities.
const EVEN: Bin = 113;

/// Bins for the magnitudes of large values, from the second bit on.
const DC_LARGE: usize = 20;
const AC_LARGE_LOW: usize = 189;
const AC_LARGE_HIGH: usize = 217;

/// Offset from the bin of a magnitude's length to the bin of its bits.
const TO_BITS: usize = 14;

struct Arithmetic<'a, 'b> {
    reader: &'a mut Reader<'b>,
    scan: &'a Scan,
    tables: &'a Tables,
    kind: Kind,
    /// The code register, the interval, and the number of unused bits in the register.
    code: u32,
    interval: u32,
    spare: i32,
    dc_bins: [[Bin; 64]; 16],
    ac_bins: [[Bin; 256]; 16],
    /// For each component of the scan: its last DC value and the class of its last difference.
    dc: [u16; 4],
    class: [usize; 4],
    restarts: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

/// Decodes a scan into `blocks`.
pub fn read(
    frame: &Frame,
    scan: &Scan,
    tables: &Tables,
    reader: &mut Reader,
    blocks: &mut impl Blocks,
) -> Result<()> {
    let mut entropy = Arithmetic {
        reader,
        scan,
        tables,
        kind: match (frame.coding, scan.first, scan.high) {
            (Coding::Progressive, 0, 0) => Kind::DcFirst,
            (Coding::Progressive, 0, _) => Kind::DcRefine,
            (Coding::Progressive, _, 0) => Kind::AcFirst,
            (Coding::Progressive, ..) => Kind::AcRefine,
            _ => Kind::Sequential,
        },
        code: 0,
        interval: 0,
        spare: -16,
        dc_bins: [[0; 64]; 16],
        ac_bins: [[0; 256]; 16],
        dc: [0; 4],
        class: [0; 4],
        restarts: 0,
    };
    walk(frame, scan, tables.restart, &mut entropy, blocks)
}

impl Entropy for Arithmetic<'_, '_> {
    fn restart(&mut self) -> Result<()> {
        self.reader.restart(self.restarts)?;
        self.restarts += 1;
        self.dc_bins = [[0; 64]; 16];
        self.ac_bins = [[0; 256]; 16];
        self.dc = [0; 4];
        self.class = [0; 4];
        (self.code, self.interval, self.spare) = (0, 0, -16);
        Ok(())
    }

    fn block(&mut self, part: usize, block: &mut [i16; 64]) -> Result<()> {
        match self.kind {
            Kind::Sequential => {
                self.difference(part)?;
                block[0] = self.dc[part] as i16;
                self.band(part, 1, 63, 0, block)
            }
            Kind::DcFirst => {
                self.difference(part)?;
                block[0] = (i32::from(self.dc[part]) << self.scan.low) as i16;
                Ok(())
            }
            Kind::DcRefine => {
                if self.bit(&mut EVEN.clone())? {
                    block[0] |= 1 << self.scan.low;
                }
                Ok(())
            }
            Kind::AcFirst => self.band(0, self.scan.first, self.scan.last, self.scan.low, block),
            Kind::AcRefine => self.refine(block),
        }
    }

    /// After the end of the data, zeros are read: encoders omit trailing zeros.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl Arithmetic<'_, '_> {
    /// The next byte of the scan; zeros once a marker is reached.
    fn byte(&mut self) -> Result<u32> {
        let data = self.reader.data;
        let Some(&byte) = data.get(self.reader.at) else {
            return damaged("truncated, it has no end marker");
        };
        if byte != 0xFF {
            self.reader.at += 1;
            return Ok(byte.into());
        }
        let rest = data.get(self.reader.at..).unwrap_or_default();
        let fill = rest.iter().take_while(|&&byte| byte == 0xFF).count();
        match rest.get(fill) {
            Some(0) => {
                self.reader.at += fill + 1;
                Ok(0xFF)
            }
            Some(_) => Ok(0),
            None => damaged("truncated, it has no end marker"),
        }
    }

    /// Decodes a decision with the probabilities of `bin` (T.81, D.2).
    #[inline]
    fn bit(&mut self, bin: &mut Bin) -> Result<bool> {
        while self.interval < 0x8000 {
            self.spare -= 1;
            if self.spare < 0 {
                self.code = self.code << 8 | self.byte()?;
                self.spare += 8;
                if self.spare < 0 {
                    self.spare += 1;
                    if self.spare == 0 {
                        self.interval = 0x8000;
                    }
                }
            }
            self.interval <<= 1;
        }
        let (odds, if_less, if_more, switches) = STATES[usize::from(*bin & 0x7F)];
        let odds = u32::from(odds);
        let more = *bin & 0x80;
        self.interval -= odds;
        let bound = self.interval << self.spare;
        let less = if self.code >= bound {
            self.code -= bound;
            let less = self.interval >= odds;
            self.interval = odds;
            less
        } else if self.interval < 0x8000 {
            self.interval < odds
        } else {
            return Ok(more != 0);
        };
        *bin = match less {
            true => (more ^ u8::from(switches) << 7) | if_less,
            false => more | if_more,
        };
        Ok((more != 0) != less)
    }

    fn dc_bit(&mut self, slot: usize, at: usize) -> Result<bool> {
        let mut bin = self.dc_bins[slot][at];
        let bit = self.bit(&mut bin)?;
        self.dc_bins[slot][at] = bin;
        Ok(bit)
    }

    fn ac_bit(&mut self, slot: usize, at: usize) -> Result<bool> {
        let mut bin = self.ac_bins[slot][at];
        let bit = self.bit(&mut bin)?;
        self.ac_bins[slot][at] = bin;
        Ok(bit)
    }

    /// Decodes the next DC value of a component (T.81, F.1.4.4.1).
    fn difference(&mut self, part: usize) -> Result<()> {
        let slot = self.scan.parts[part].dc;
        let mut at = self.class[part];
        if !self.dc_bit(slot, at)? {
            self.class[part] = 0;
            return Ok(());
        }
        let negative = self.dc_bit(slot, at + 1)?;
        at += 2 + usize::from(negative);
        let mut magnitude = u32::from(self.dc_bit(slot, at)?);
        if magnitude != 0 {
            at = DC_LARGE;
            while self.dc_bit(slot, at)? {
                magnitude <<= 1;
                if magnitude == 0x8000 {
                    return damaged("a wrong arithmetic code");
                }
                at += 1;
            }
        }
        let (low, high) = self.tables.dc_bounds[slot];
        self.class[part] = match magnitude {
            m if m < 1 << low >> 1 => 0,
            m if m > 1 << high >> 1 => 12 + 4 * usize::from(negative),
            _ => 4 + 4 * usize::from(negative),
        };
        let mut value = magnitude;
        let mut bit = magnitude >> 1;
        while bit != 0 {
            if self.dc_bit(slot, at + TO_BITS)? {
                value |= bit;
            }
            bit >>= 1;
        }
        let value = value as u16 + 1;
        let value = if negative {
            value.wrapping_neg()
        } else {
            value
        };
        self.dc[part] = self.dc[part].wrapping_add(value);
        Ok(())
    }

    /// AC coefficients `first` to `last` (T.81, F.1.4.4.2).
    fn band(
        &mut self,
        part: usize,
        first: usize,
        last: usize,
        low: u32,
        block: &mut [i16; 64],
    ) -> Result<()> {
        let slot = self.scan.parts[part].ac;
        let mut k = first;
        while k <= last {
            let mut at = 3 * (k - 1);
            if self.ac_bit(slot, at)? {
                break;
            }
            while !self.ac_bit(slot, at + 1)? {
                at += 3;
                k += 1;
                if k > last {
                    return damaged("a wrong arithmetic code");
                }
            }
            let negative = self.bit(&mut EVEN.clone())?;
            at += 2;
            let mut magnitude = u32::from(self.ac_bit(slot, at)?);
            if magnitude != 0 && self.ac_bit(slot, at)? {
                magnitude <<= 1;
                at = match k <= usize::from(self.tables.ac_bound[slot]) {
                    true => AC_LARGE_LOW,
                    false => AC_LARGE_HIGH,
                };
                while self.ac_bit(slot, at)? {
                    magnitude <<= 1;
                    if magnitude == 0x8000 {
                        return damaged("a wrong arithmetic code");
                    }
                    at += 1;
                }
            }
            let mut value = magnitude;
            let mut bit = magnitude >> 1;
            while bit != 0 {
                if self.ac_bit(slot, at + TO_BITS)? {
                    value |= bit;
                }
                bit >>= 1;
            }
            let value = value as i32 + 1;
            let value = if negative { -value } else { value };
            block[usize::from(NATURAL[k])] = (value << low) as i16;
            k += 1;
        }
        Ok(())
    }

    /// Decodes one more bit of a band's coefficients (T.81, G.1.3.3).
    fn refine(&mut self, block: &mut [i16; 64]) -> Result<()> {
        let Scan {
            first, last, low, ..
        } = *self.scan;
        let slot = self.scan.parts[0].ac;
        let bit = 1_i16 << low;
        let nonzero = |k: &usize| block[usize::from(NATURAL[*k])] != 0;
        let end_before = (1..=last).rev().find(nonzero).unwrap_or(0);
        let mut k = first;
        while k <= last {
            let mut at = 3 * (k - 1);
            if k > end_before && self.ac_bit(slot, at)? {
                break;
            }
            loop {
                let place = usize::from(NATURAL[k]);
                if block[place] != 0 {
                    if self.ac_bit(slot, at + 2)? {
                        block[place] = match block[place] < 0 {
                            true => block[place].wrapping_sub(bit),
                            false => block[place].wrapping_add(bit),
                        };
                    }
                    break;
                }
                if self.ac_bit(slot, at + 1)? {
                    let negative = self.bit(&mut EVEN.clone())?;
                    block[place] = if negative { -bit } else { bit };
                    break;
                }
                at += 3;
                k += 1;
                if k > last {
                    return damaged("a wrong arithmetic code");
                }
            }
            k += 1;
        }
        Ok(())
    }
}

/// T.81, table D.3: the probability of the less probable symbol, the states after it and after the
/// more probable one, and whether the two are exchanged; the last entry is the state of equal
/// probabilities.
const STATES: [(u16, u8, u8, bool); 114] = [
    (0x5a1d, 1, 1, true),
    (0x2586, 14, 2, false),
    (0x1114, 16, 3, false),
    (0x080b, 18, 4, false),
    (0x03d8, 20, 5, false),
    (0x01da, 23, 6, false),
    (0x00e5, 25, 7, false),
    (0x006f, 28, 8, false),
    (0x0036, 30, 9, false),
    (0x001a, 33, 10, false),
    (0x000d, 35, 11, false),
    (0x0006, 9, 12, false),
    (0x0003, 10, 13, false),
    (0x0001, 12, 13, false),
    (0x5a7f, 15, 15, true),
    (0x3f25, 36, 16, false),
    (0x2cf2, 38, 17, false),
    (0x207c, 39, 18, false),
    (0x17b9, 40, 19, false),
    (0x1182, 42, 20, false),
    (0x0cef, 43, 21, false),
    (0x09a1, 45, 22, false),
    (0x072f, 46, 23, false),
    (0x055c, 48, 24, false),
    (0x0406, 49, 25, false),
    (0x0303, 51, 26, false),
    (0x0240, 52, 27, false),
    (0x01b1, 54, 28, false),
    (0x0144, 56, 29, false),
    (0x00f5, 57, 30, false),
    (0x00b7, 59, 31, false),
    (0x008a, 60, 32, false),
    (0x0068, 62, 33, false),
    (0x004e, 63, 34, false),
    (0x003b, 32, 35, false),
    (0x002c, 33, 9, false),
    (0x5ae1, 37, 37, true),
    (0x484c, 64, 38, false),
    (0x3a0d, 65, 39, false),
    (0x2ef1, 67, 40, false),
    (0x261f, 68, 41, false),
    (0x1f33, 69, 42, false),
    (0x19a8, 70, 43, false),
    (0x1518, 72, 44, false),
    (0x1177, 73, 45, false),
    (0x0e74, 74, 46, false),
    (0x0bfb, 75, 47, false),
    (0x09f8, 77, 48, false),
    (0x0861, 78, 49, false),
    (0x0706, 79, 50, false),
    (0x05cd, 48, 51, false),
    (0x04de, 50, 52, false),
    (0x040f, 50, 53, false),
    (0x0363, 51, 54, false),
    (0x02d4, 52, 55, false),
    (0x025c, 53, 56, false),
    (0x01f8, 54, 57, false),
    (0x01a4, 55, 58, false),
    (0x0160, 56, 59, false),
    (0x0125, 57, 60, false),
    (0x00f6, 58, 61, false),
    (0x00cb, 59, 62, false),
    (0x00ab, 61, 63, false),
    (0x008f, 61, 32, false),
    (0x5b12, 65, 65, true),
    (0x4d04, 80, 66, false),
    (0x412c, 81, 67, false),
    (0x37d8, 82, 68, false),
    (0x2fe8, 83, 69, false),
    (0x293c, 84, 70, false),
    (0x2379, 86, 71, false),
    (0x1edf, 87, 72, false),
    (0x1aa9, 87, 73, false),
    (0x174e, 72, 74, false),
    (0x1424, 72, 75, false),
    (0x119c, 74, 76, false),
    (0x0f6b, 74, 77, false),
    (0x0d51, 75, 78, false),
    (0x0bb6, 77, 79, false),
    (0x0a40, 77, 48, false),
    (0x5832, 80, 81, true),
    (0x4d1c, 88, 82, false),
    (0x438e, 89, 83, false),
    (0x3bdd, 90, 84, false),
    (0x34ee, 91, 85, false),
    (0x2eae, 92, 86, false),
    (0x299a, 93, 87, false),
    (0x2516, 86, 71, false),
    (0x5570, 88, 89, true),
    (0x4ca9, 95, 90, false),
    (0x44d9, 96, 91, false),
    (0x3e22, 97, 92, false),
    (0x3824, 99, 93, false),
    (0x32b4, 99, 94, false),
    (0x2e17, 93, 86, false),
    (0x56a8, 95, 96, true),
    (0x4f46, 101, 97, false),
    (0x47e5, 102, 98, false),
    (0x41cf, 103, 99, false),
    (0x3c3d, 104, 100, false),
    (0x375e, 99, 93, false),
    (0x5231, 105, 102, false),
    (0x4c0f, 106, 103, false),
    (0x4639, 107, 104, false),
    (0x415e, 103, 99, false),
    (0x5627, 105, 106, true),
    (0x50e7, 108, 107, false),
    (0x4b85, 109, 103, false),
    (0x5597, 110, 109, false),
    (0x504f, 111, 107, false),
    (0x5a10, 110, 111, true),
    (0x5522, 112, 109, false),
    (0x59eb, 112, 111, true),
    (0x5a1d, 113, 113, false),
];
