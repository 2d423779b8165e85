//! The frame header: size, coding, and each component's sampling (T.81, B.2.2 and A.1.1).

use super::segments::{Scan, Tables};
use super::{Result, damaged, unsupported};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Sequential,
    Progressive,
    Lossless,
}

/// A component. Its units are blocks of 8×8, or samples in lossless coding.
#[derive(Debug)]
pub struct Component {
    pub id: u8,
    /// Sampling factors, H and V.
    pub h: usize,
    pub v: usize,
    /// Size in visible samples, [height,width].
    pub width: usize,
    pub height: usize,
    /// Size in units.
    pub wide: usize,
    pub high: usize,
    /// Size in units, padded to whole MCUs.
    pub padded_wide: usize,
    pub padded_high: usize,
    table: usize,
    /// The quantization steps in natural order, as defined at the component's first scan.
    quantization: Option<[u16; 64]>,
    /// Whether a scan has contained it.
    pub seen: bool,
}

impl Component {
    /// The quantization steps, which a component has once its first scan has begun.
    pub fn steps(&self) -> [u16; 64] {
        self.quantization.unwrap_or([0; 64])
    }
}

#[derive(Debug)]
pub struct Frame {
    pub coding: Coding,
    pub arithmetic: bool,
    pub width: usize,
    pub height: usize,
    pub h_max: usize,
    pub v_max: usize,
    /// MCUs of an interleaved scan.
    pub mcus_wide: usize,
    pub mcus_high: usize,
    pub components: Vec<Component>,
}

impl Frame {
    pub fn parse(code: u8, segment: &[u8]) -> Result<Frame> {
        let [bits, y1, y0, x1, x0, count, rest @ ..] = segment else {
            return damaged("its frame header is cut short");
        };
        let coding = match code {
            0xC2 | 0xCA => Coding::Progressive,
            0xC3 => Coding::Lossless,
            _ => Coding::Sequential,
        };
        if *bits != 8 {
            return unsupported(format!("{bits} bits a sample"));
        }
        let height = usize::from(u16::from_be_bytes([*y1, *y0]));
        let width = usize::from(u16::from_be_bytes([*x1, *x0]));
        if height == 0 {
            return unsupported("a height that follows the first scan (DNL)");
        }
        if width == 0 {
            return damaged("it is 0 pixels wide");
        }
        if !matches!(count, 1 | 3 | 4) {
            return unsupported(format!("{count} components"));
        }
        let (described, []) = rest.as_chunks::<3>() else {
            return damaged("its frame header has a wrong length");
        };
        if described.len() != usize::from(*count) {
            return damaged("its frame header has a wrong length");
        }
        let factors = described
            .iter()
            .map(|c| (usize::from(c[1] >> 4), usize::from(c[1] & 15)));
        if factors
            .clone()
            .any(|(h, v)| !(1..=4).contains(&h) || !(1..=4).contains(&v))
        {
            return damaged("sampling factors beyond 1 to 4");
        }
        let h_max = factors.clone().map(|(h, _)| h).max().unwrap_or(1);
        let v_max = factors.clone().map(|(_, v)| v).max().unwrap_or(1);
        let unit = if coding == Coding::Lossless { 1 } else { 8 };
        let mcus_wide = width.div_ceil(h_max * unit);
        let mcus_high = height.div_ceil(v_max * unit);
        let components = described
            .iter()
            .zip(factors)
            .map(|(&[id, _, table], (h, v))| Component {
                id,
                h,
                v,
                width: (width * h).div_ceil(h_max),
                height: (height * v).div_ceil(v_max),
                wide: (width * h).div_ceil(h_max * unit),
                high: (height * v).div_ceil(v_max * unit),
                padded_wide: mcus_wide * h,
                padded_high: mcus_high * v,
                table: table.into(),
                quantization: None,
                seen: false,
            })
            .collect();
        Ok(Frame {
            coding,
            arithmetic: matches!(code, 0xC9 | 0xCA),
            width,
            height,
            h_max,
            v_max,
            mcus_wide,
            mcus_high,
            components,
        })
    }

    /// Samples along one side of a unit.
    pub fn unit(&self) -> usize {
        if self.coding == Coding::Lossless {
            1
        } else {
            8
        }
    }

    /// Copies the quantization tables of components whose first scan this is, because a file may
    /// redefine them afterwards.
    pub fn latch_quantization(&mut self, scan: &Scan, tables: &Tables) -> Result<()> {
        for part in &scan.parts {
            let component = &mut self.components[part.component];
            component.seen = true;
            if self.coding == Coding::Lossless || component.quantization.is_some() {
                continue;
            }
            match tables.quantization.get(component.table) {
                Some(Some(table)) => component.quantization = Some(*table),
                _ => return damaged(format!("no quantization table {}", component.table)),
            }
        }
        Ok(())
    }

    /// Number of units in a scan of all components.
    pub fn units_of_all(&self) -> u64 {
        let of = |c: &Component| c.padded_wide as u64 * c.padded_high as u64;
        self.components.iter().map(of).sum()
    }

    /// Number of units in a scan.
    pub fn units(&self, scan: &Scan) -> u64 {
        let of = |wide: usize, high: usize| wide as u64 * high as u64;
        let components = || {
            scan.parts
                .iter()
                .map(|part| &self.components[part.component])
        };
        match scan.parts.len() {
            1 => components().map(|c| of(c.wide, c.high)).sum(),
            _ => components().map(|c| of(c.padded_wide, c.padded_high)).sum(),
        }
    }
}
