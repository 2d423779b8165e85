//! A component's coefficients, kept until all scans are read.

use super::Result;
use super::frame::Component;
use super::walk::Blocks;

pub struct Coefficients {
    /// Blocks per row, in whole MCUs.
    pub wide: usize,
    /// [rows,wide] of 64 coefficients in natural order, not yet dequantized.
    pub blocks: Vec<[i16; 64]>,
    /// For each coefficient, the number of low bits that no scan has given yet; −1 if no scan has
    /// given any.
    pub missing: [i8; 64],
}

impl Coefficients {
    pub fn new(component: &Component) -> Coefficients {
        Coefficients {
            wide: component.padded_wide,
            blocks: vec![[0; 64]; component.padded_wide * component.padded_high],
            missing: [-1; 64],
        }
    }

    #[inline(always)]
    pub fn block(&self, x: usize, y: usize) -> &[i16; 64] {
        &self.blocks[y * self.wide + x]
    }
}

impl Blocks for Vec<Coefficients> {
    #[inline(always)]
    fn with(
        &mut self,
        component: usize,
        x: usize,
        y: usize,
        fill: impl FnOnce(&mut [i16; 64]) -> Result<()>,
    ) -> Result<()> {
        let of = &mut self[component];
        fill(&mut of.blocks[y * of.wide + x])
    }
}
