//! Lossless scans: differences from predicted values (T.81, annex H).

use super::bits::Bits;
use super::frame::{Component, Frame};
use super::huffman::Huffman;
use super::markers::Reader;
use super::segments::{Scan, Tables};
use super::upsample::Plane;
use super::{Result, damaged};

/// The category of the difference 32768, which has no extra bits.
const LARGEST: u8 = 16;

/// Bits per sample.
const PRECISION: u32 = 8;

/// A component while its scan is read.
struct Line {
    /// The differences of an MCU's rows, [V,W], and the last reconstructed row.
    differences: Vec<u16>,
    before: Vec<u16>,
    /// Whether the next row starts a scan or follows a restart.
    first: bool,
}

/// Decodes a scan into `planes`.
pub fn read(
    frame: &Frame,
    scan: &Scan,
    tables: &Tables,
    reader: &mut Reader,
    planes: &mut [Plane],
) -> Result<()> {
    if !(1..=7).contains(&scan.first) || scan.last != 0 || scan.high != 0 || scan.low >= PRECISION {
        return damaged(format!("a lossless scan with predictor {}", scan.first));
    }
    let codes = scan
        .parts
        .iter()
        .map(|part| Huffman::new(tables.dc.get(part.dc), Some(LARGEST)));
    let codes = codes.collect::<Result<Vec<_>>>()?;
    let components: Vec<&Component> = scan
        .parts
        .iter()
        .map(|part| &frame.components[part.component])
        .collect();
    let alone = components.len() == 1;
    let mcus = if alone {
        components[0].wide
    } else {
        frame.mcus_wide
    };
    if !tables.restart.is_multiple_of(mcus) {
        return damaged("a restart within a row of a lossless scan");
    }
    let mut lines: Vec<Line> = components.iter().map(|c| Line::new(c)).collect();
    let (mut rows_left, mut restarts) = (tables.restart / mcus, 0);
    let mut bits = Bits::new(reader);
    for mcu_y in 0..frame.mcus_high {
        let rows = if alone {
            rows_of(components[0], mcu_y)
        } else {
            1
        };
        for row in 0..rows {
            if tables.restart > 0 {
                if rows_left == 0 {
                    bits.leave(reader)?;
                    reader.restart(restarts)?;
                    bits = Bits::new(reader);
                    restarts += 1;
                    rows_left = tables.restart / mcus;
                    lines.iter_mut().for_each(|line| line.first = true);
                }
                rows_left -= 1;
            }
            for mcu_x in 0..mcus {
                for ((component, line), codes) in components.iter().zip(&mut lines).zip(&codes) {
                    let (h, v) = if alone {
                        (1, 1)
                    } else {
                        (component.h, component.v)
                    };
                    for y in row..row + v {
                        for x in mcu_x * h..(mcu_x + 1) * h {
                            bits.fill();
                            line.differences[y * component.padded_wide + x] =
                                match codes.symbol(&mut bits)? {
                                    16 => 32768,
                                    size => bits.signed(size) as u16,
                                };
                        }
                    }
                }
            }
            bits.check()?;
        }
        for ((component, line), part) in components.iter().zip(&mut lines).zip(&scan.parts) {
            for row in 0..rows_of(component, mcu_y) {
                line.predict(component, row, scan);
                let plane = &mut planes[part.component];
                let samples = plane.row_mut(mcu_y * component.v + row);
                for (sample, value) in samples.iter_mut().zip(&line.before) {
                    *sample = (value << scan.low) as u8;
                }
            }
        }
    }
    bits.leave(reader)
}

/// Number of a component's rows in an MCU row.
fn rows_of(component: &Component, mcu_y: usize) -> usize {
    component.v.min(component.high - mcu_y * component.v)
}

impl Line {
    fn new(component: &Component) -> Line {
        Line {
            differences: vec![0; component.padded_wide * component.v],
            before: vec![0; component.wide],
            first: true,
        }
    }

    /// Adds a row of differences to the prediction (T.81, table H.1); sums are modulo 2¹⁶.
    fn predict(&mut self, component: &Component, row: usize, scan: &Scan) {
        let start = row * component.padded_wide;
        let differences = &self.differences[start..start + component.wide];
        let above = &mut self.before;
        let predictor = if self.first { 1 } else { scan.first };
        let first = match self.first {
            true => 1 << (PRECISION - scan.low - 1),
            false => above[0],
        };
        self.first = false;
        // Left, above and above left.
        let mut c = i32::from(above[0]);
        above[0] = differences[0].wrapping_add(first);
        let mut a = i32::from(above[0]);
        for (sample, difference) in above.iter_mut().zip(differences).skip(1) {
            let b = i32::from(*sample);
            let predicted = match predictor {
                1 => a,
                2 => b,
                3 => c,
                4 => a + b - c,
                5 => a + ((b - c) >> 1),
                6 => b + ((a - c) >> 1),
                _ => (a + b) >> 1,
            };
            *sample = difference.wrapping_add(predicted as u16);
            (a, c) = (i32::from(*sample), b);
        }
    }
}
