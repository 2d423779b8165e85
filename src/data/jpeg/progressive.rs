//! Huffman-coded progressive scans: a band of coefficients, or one more bit of them (T.81, G.1.2
//! and G.2).

use super::bits::Bits;
use super::coefficients::Coefficients;
use super::frame::{Coding, Frame};
use super::huffman::Huffman;
use super::markers::Reader;
use super::segments::{NATURAL, Scan, Tables};
use super::sequential::LARGEST_DC;
use super::walk::{Entropy, walk};
use super::{Result, damaged};

/// Records which bits a scan contains.
pub fn note(scan: &Scan, frame: &Frame, blocks: &mut [Coefficients]) {
    if frame.coding != Coding::Progressive {
        return;
    }
    for part in &scan.parts {
        blocks[part.component].missing[scan.first..=scan.last].fill(scan.low as i8);
    }
}

/// State that all four kinds of scans share.
struct State<'a, 'b> {
    reader: &'a mut Reader<'b>,
    bits: Bits<'b>,
    scan: &'a Scan,
    restarts: usize,
    dc: [i32; 4],
    /// Number of following blocks without more coefficients in this band.
    ended: u32,
}

impl State<'_, '_> {
    fn restart(&mut self) -> Result<()> {
        self.bits.leave(self.reader)?;
        self.reader.restart(self.restarts)?;
        self.bits = Bits::new(self.reader);
        self.restarts += 1;
        self.dc = [0; 4];
        self.ended = 0;
        Ok(())
    }

    /// The length of a run of ended blocks, including this one: 2ʳ plus r bits.
    #[inline(always)]
    fn run_of_ended(&mut self, r: u32) -> u32 {
        let more = if r == 0 { 0 } else { self.bits.take(r) };
        (1 << r) + more
    }
}

struct DcFirst<'a, 'b>(State<'a, 'b>, Vec<Huffman>);
struct DcRefine<'a, 'b>(State<'a, 'b>);
struct AcFirst<'a, 'b>(State<'a, 'b>, Huffman);
struct AcRefine<'a, 'b>(State<'a, 'b>, Huffman);

pub fn read(
    frame: &Frame,
    scan: &Scan,
    tables: &Tables,
    reader: &mut Reader,
    blocks: &mut Vec<Coefficients>,
) -> Result<()> {
    let state = State {
        bits: Bits::new(reader),
        reader,
        scan,
        restarts: 0,
        dc: [0; 4],
        ended: 0,
    };
    let ac = || Huffman::new(tables.ac.get(scan.parts[0].ac), None);
    let restart = tables.restart;
    let State {
        mut bits, reader, ..
    } = match (scan.first, scan.high) {
        (0, 0) => {
            let codes = scan
                .parts
                .iter()
                .map(|part| Huffman::new(tables.dc.get(part.dc), Some(LARGEST_DC)));
            let mut scanner = DcFirst(state, codes.collect::<Result<_>>()?);
            walk(frame, scan, restart, &mut scanner, blocks)?;
            scanner.0
        }
        (0, _) => {
            let mut scanner = DcRefine(state);
            walk(frame, scan, restart, &mut scanner, blocks)?;
            scanner.0
        }
        (_, 0) => {
            let mut scanner = AcFirst(state, ac()?);
            walk(frame, scan, restart, &mut scanner, blocks)?;
            scanner.0
        }
        _ => {
            let mut scanner = AcRefine(state, ac()?);
            walk(frame, scan, restart, &mut scanner, blocks)?;
            scanner.0
        }
    };
    bits.leave(reader)
}

impl Entropy for DcFirst<'_, '_> {
    fn restart(&mut self) -> Result<()> {
        self.0.restart()
    }

    #[inline(always)]
    fn block(&mut self, part: usize, block: &mut [i16; 64]) -> Result<()> {
        let DcFirst(state, codes) = self;
        state.bits.fill();
        let (_, difference) = codes[part].symbol_and_value(&mut state.bits)?;
        state.dc[part] = state.dc[part].wrapping_add(difference);
        block[0] = (state.dc[part] << state.scan.low) as i16;
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.0.bits.check()
    }
}

impl Entropy for DcRefine<'_, '_> {
    fn restart(&mut self) -> Result<()> {
        self.0.restart()
    }

    #[inline(always)]
    fn block(&mut self, _: usize, block: &mut [i16; 64]) -> Result<()> {
        if self.0.bits.flag() {
            block[0] |= 1 << self.0.scan.low;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.0.bits.check()
    }
}

impl Entropy for AcFirst<'_, '_> {
    fn restart(&mut self) -> Result<()> {
        self.0.restart()
    }

    #[inline(always)]
    fn block(&mut self, _: usize, block: &mut [i16; 64]) -> Result<()> {
        let AcFirst(state, codes) = self;
        if state.ended > 0 {
            state.ended -= 1;
            return Ok(());
        }
        let mut k = state.scan.first;
        while k <= state.scan.last {
            state.bits.fill();
            let (symbol, value) = codes.symbol_and_value(&mut state.bits)?;
            let run = symbol >> 4;
            if symbol & 15 != 0 {
                k += run as usize;
                block[usize::from(NATURAL[k])] = (value << state.scan.low) as i16;
                k += 1;
            } else if run == 15 {
                k += 16;
            } else {
                state.ended = state.run_of_ended(run) - 1;
                break;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.0.bits.check()
    }
}

impl Entropy for AcRefine<'_, '_> {
    fn restart(&mut self) -> Result<()> {
        self.0.restart()
    }

    #[inline(always)]
    fn block(&mut self, _: usize, block: &mut [i16; 64]) -> Result<()> {
        let AcRefine(state, codes) = self;
        let bit = 1_i16 << state.scan.low;
        let mut k = state.scan.first;
        if state.ended == 0 {
            while k <= state.scan.last {
                state.bits.fill();
                let symbol = codes.symbol(&mut state.bits)?;
                let mut run = symbol >> 4;
                let new = match symbol & 15 {
                    0 if run < 15 => {
                        state.ended = state.run_of_ended(run);
                        break;
                    }
                    0 => 0,
                    1 if state.bits.take(1) != 0 => bit,
                    1 => -bit,
                    _ => return damaged("a new coefficient of more than one bit"),
                };
                // Skips zeros until the run is used up; other coefficients get their next bit.
                while k <= state.scan.last {
                    let coefficient = &mut block[usize::from(NATURAL[k])];
                    if *coefficient != 0 {
                        refine(&mut state.bits, coefficient, bit);
                    } else if run == 0 {
                        break;
                    } else {
                        run -= 1;
                    }
                    k += 1;
                }
                if new != 0 {
                    block[usize::from(NATURAL[k])] = new;
                }
                k += 1;
            }
        }
        if state.ended > 0 {
            state.ended -= 1;
            for k in k..=state.scan.last {
                let coefficient = &mut block[usize::from(NATURAL[k])];
                if *coefficient != 0 {
                    refine(&mut state.bits, coefficient, bit);
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.0.bits.check()
    }
}

#[inline(always)]
fn refine(bits: &mut Bits, coefficient: &mut i16, bit: i16) {
    if bits.flag() && *coefficient & bit == 0 {
        *coefficient = match *coefficient >= 0 {
            true => coefficient.wrapping_add(bit),
            false => coefficient.wrapping_sub(bit),
        };
    }
}
