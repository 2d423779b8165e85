//! A component's coefficients, kept while several scans bring them.

use super::Result;
use super::frame::Component;
use super::walk::Blocks;

pub struct Coefficients {
    /// Blocks in a row, whole MCUs.
    pub wide: usize,
    /// [rows,wide] of 64 in natural order, not yet multiplied by the steps of quantization.
    pub blocks: Vec<[i16; 64]>,
    /// Of each coefficient, the lowest bits that no scan has brought yet; −1 where there was none
    /// at all.
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
