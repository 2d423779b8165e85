//! Huffman-coded sequential scans: one DC difference and zigzag runs per block (T.81, F.2.2).

use super::Result;
use super::bits::Bits;
use super::frame::Frame;
use super::huffman::Huffman;
use super::markers::Reader;
use super::segments::{NATURAL, Scan, Tables};
use super::walk::{Blocks, Entropy, walk};

/// The largest category of a DC difference.
pub const LARGEST_DC: u8 = 15;

struct Sequential<'a, 'b> {
    reader: &'a mut Reader<'b>,
    bits: Bits<'b>,
    /// For each component of the scan: its DC and AC codes.
    codes: Vec<(Huffman, Huffman)>,
    /// The last DC value of each.
    dc: [i32; 4],
    restarts: usize,
}

/// Decodes a scan into `blocks`.
#[inline(always)]
pub fn read(
    frame: &Frame,
    scan: &Scan,
    tables: &Tables,
    reader: &mut Reader,
    blocks: &mut impl Blocks,
) -> Result<()> {
    let mut codes = Vec::new();
    for part in &scan.parts {
        codes.push((
            Huffman::new(tables.dc.get(part.dc), Some(LARGEST_DC))?,
            Huffman::new(tables.ac.get(part.ac), None)?,
        ));
    }
    let bits = Bits::new(reader);
    let mut entropy = Sequential {
        reader,
        bits,
        codes,
        dc: [0; 4],
        restarts: 0,
    };
    walk(frame, scan, tables.restart, &mut entropy, blocks)?;
    entropy.bits.leave(entropy.reader)
}

impl Entropy for Sequential<'_, '_> {
    fn restart(&mut self) -> Result<()> {
        self.bits.leave(self.reader)?;
        self.reader.restart(self.restarts)?;
        self.bits = Bits::new(self.reader);
        self.dc = [0; 4];
        self.restarts += 1;
        Ok(())
    }

    #[inline(always)]
    fn block(&mut self, part: usize, block: &mut [i16; 64]) -> Result<()> {
        let Sequential {
            bits, codes, dc, ..
        } = self;
        let (dc_codes, ac_codes) = &codes[part];
        bits.fill();
        let (_, difference) = dc_codes.symbol_and_value(bits)?;
        dc[part] = dc[part].wrapping_add(difference);
        block[0] = dc[part] as i16;
        let mut k = 1;
        while k < 64 {
            bits.fill();
            let (symbol, value) = ac_codes.symbol_and_value(bits)?;
            let run = (symbol >> 4) as usize;
            if symbol & 15 != 0 {
                k += run;
                // A run past the end, which only occurs in damaged data, writes to the last
                // position, as in libjpeg.
                block[usize::from(NATURAL[k])] = value as i16;
                k += 1;
            } else if run == 15 {
                k += 16;
            } else {
                break;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn check(&self) -> Result<()> {
        self.bits.check()
    }
}
