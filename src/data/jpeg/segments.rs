//! Tables and scan headers (T.81, B.2.3 and B.2.4).

use super::frame::{Coding, Frame};
use super::huffman::{self, Codes};
use super::{Result, damaged};

/// The natural position of the k-th zigzag coefficient; positions past the end map to the last.
pub const NATURAL: [u8; 80] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63,
];

/// Definitions in the segments between scans.
pub struct Tables {
    pub quantization: [Option<[u16; 64]>; 4],
    pub dc: [Option<Codes>; 4],
    pub ac: [Option<Codes>; 4],
    /// The bounds L and U of small DC differences in arithmetic coding, and K, which divides its AC
    /// categories.
    pub dc_bounds: [(u8, u8); 16],
    pub ac_bound: [u8; 16],
    /// MCUs between restart markers; 0: none.
    pub restart: usize,
}

impl Tables {
    pub fn new() -> Tables {
        Tables {
            quantization: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            dc_bounds: [(0, 1); 16],
            ac_bound: [5; 16],
            restart: 0,
        }
    }

    /// Motion JPEG omits the tables of annex K.3.
    pub fn fill_standard_huffman(&mut self) {
        for (i, (dc, ac)) in huffman::standard().into_iter().enumerate() {
            self.dc[i].get_or_insert(dc);
            self.ac[i].get_or_insert(ac);
        }
    }

    pub fn read_quantization(&mut self, mut segment: &[u8]) -> Result<()> {
        while let [head, rest @ ..] = segment {
            let slot = usize::from(head & 15);
            let bytes = if head >> 4 == 0 { 64 } else { 128 };
            let (Some(table), Some((values, rest))) = (
                self.quantization.get_mut(slot),
                rest.split_at_checked(bytes),
            ) else {
                return damaged("a wrong quantization table");
            };
            let table = table.insert([0; 64]);
            for (k, &place) in NATURAL[..64].iter().enumerate() {
                table[usize::from(place)] = match bytes {
                    64 => values[k].into(),
                    _ => u16::from_be_bytes([values[2 * k], values[2 * k + 1]]),
                };
            }
            segment = rest;
        }
        Ok(())
    }

    pub fn read_huffman(&mut self, mut segment: &[u8]) -> Result<()> {
        while let Some((head, rest)) = segment.split_first_chunk::<17>() {
            let slot = usize::from(head[0] & 15);
            let tables = match head[0] >> 4 {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return damaged("a wrong Huffman table"),
            };
            let count = head[1..].iter().map(|&n| usize::from(n)).sum();
            let (Some(table), Some((values, rest))) = (
                tables.get_mut(slot),
                rest.split_at_checked(count).filter(|_| count <= 256),
            ) else {
                return damaged("a wrong Huffman table");
            };
            let mut codes = Codes {
                counts: [0; 16],
                values: [0; 256],
            };
            codes.counts.copy_from_slice(&head[1..]);
            codes.values[..count].copy_from_slice(values);
            *table = Some(codes);
            segment = rest;
        }
        match segment.is_empty() {
            true => Ok(()),
            false => damaged("a wrong Huffman table"),
        }
    }

    pub fn read_conditioning(&mut self, segment: &[u8]) -> Result<()> {
        let (pairs, []) = segment.as_chunks::<2>() else {
            return damaged("wrong arithmetic conditioning");
        };
        for &[index, value] in pairs {
            match index {
                0..=15 if value & 15 <= value >> 4 => {
                    self.dc_bounds[usize::from(index)] = (value & 15, value >> 4);
                }
                16..=31 => self.ac_bound[usize::from(index) - 16] = value,
                _ => return damaged("wrong arithmetic conditioning"),
            }
        }
        Ok(())
    }

    pub fn read_restart_interval(&mut self, segment: &[u8]) -> Result<()> {
        let &[high, low] = segment else {
            return damaged("a wrong restart interval");
        };
        self.restart = u16::from_be_bytes([high, low]).into();
        Ok(())
    }
}

/// A component in a scan.
#[derive(Debug)]
pub struct Part {
    /// Its index in the frame.
    pub component: usize,
    pub dc: usize,
    pub ac: usize,
}

/// A scan header.
#[derive(Debug)]
pub struct Scan {
    pub parts: Vec<Part>,
    /// Ss and Se: the first and the last coefficient; Ss is the predictor of lossless coding.
    pub first: usize,
    pub last: usize,
    /// Ah and Al: the number of low bits missing before and after this scan.
    pub high: u32,
    pub low: u32,
}

impl Scan {
    pub fn parse(segment: &[u8], frame: &Frame) -> Result<Scan> {
        let wrong = || damaged("a wrong scan header");
        let [count, rest @ ..] = segment else {
            return wrong();
        };
        let Some((described, &[first, last, approximation])) = rest.split_last_chunk::<3>() else {
            return wrong();
        };
        let (described, []) = described.as_chunks::<2>() else {
            return wrong();
        };
        if described.len() != usize::from(*count) || !(1..=4).contains(count) {
            return wrong();
        }
        let mut parts: Vec<Part> = Vec::new();
        for &[id, slots] in described {
            let mut candidates = frame.components.iter().enumerate();
            let new = |c: usize| parts.iter().all(|part| part.component != c);
            let Some((component, _)) = candidates.find(|(c, found)| found.id == id && new(*c))
            else {
                return damaged(format!("a scan of an unknown component {id}"));
            };
            parts.push(Part {
                component,
                dc: usize::from(slots >> 4),
                ac: usize::from(slots & 15),
            });
        }
        let units = parts.iter().map(|part| &frame.components[part.component]);
        if parts.len() > 1 && units.map(|c| c.h * c.v).sum::<usize>() > 10 {
            return damaged("an MCU of more than ten blocks");
        }
        let scan = Scan {
            parts,
            first: first.into(),
            last: last.into(),
            high: u32::from(approximation >> 4),
            low: u32::from(approximation & 15),
        };
        if frame.coding == Coding::Progressive {
            scan.check_progression()?;
        }
        Ok(scan)
    }

    fn check_progression(&self) -> Result<()> {
        let band = match self.first {
            0 => self.last == 0,
            _ => self.first <= self.last && self.last < 64 && self.parts.len() == 1,
        };
        let refines = self.high == 0 || self.low + 1 == self.high;
        match band && refines && self.low <= 13 {
            true => Ok(()),
            false => damaged(format!(
                "a progressive scan of coefficients {} to {}, bits {} to {}",
                self.first, self.last, self.high, self.low
            )),
        }
    }
}
