//! The order of blocks in a scan: MCU by MCU, or block by block if the scan has a single component
//! (T.81, A.2).

use super::Result;
use super::frame::Frame;
use super::segments::Scan;

/// An entropy decoder.
pub trait Entropy {
    /// Skips a restart marker and resets the state.
    fn restart(&mut self) -> Result<()>;

    /// Decodes a block of the scan's `part`th component.
    fn block(&mut self, part: usize, block: &mut [i16; 64]) -> Result<()>;

    /// Checks that the file contains everything that was read.
    fn check(&self) -> Result<()>;
}

/// Storage for blocks.
pub trait Blocks {
    /// Lets `fill` write the block of `component` in block column `x` and block row `y`.
    fn with(
        &mut self,
        component: usize,
        x: usize,
        y: usize,
        fill: impl FnOnce(&mut [i16; 64]) -> Result<()>,
    ) -> Result<()>;
}

#[inline(always)]
pub fn walk(
    frame: &Frame,
    scan: &Scan,
    restart: usize,
    entropy: &mut impl Entropy,
    blocks: &mut impl Blocks,
) -> Result<()> {
    let mut left = restart;
    if let [part] = scan.parts.as_slice() {
        let component = &frame.components[part.component];
        for y in 0..component.high {
            for x in 0..component.wide {
                begin_mcu(entropy, restart, &mut left)?;
                blocks.with(part.component, x, y, |block| entropy.block(0, block))?;
            }
            entropy.check()?;
        }
        return Ok(());
    }
    for mcu_y in 0..frame.mcus_high {
        for mcu_x in 0..frame.mcus_wide {
            begin_mcu(entropy, restart, &mut left)?;
            for (i, part) in scan.parts.iter().enumerate() {
                let component = &frame.components[part.component];
                for y in mcu_y * component.v..(mcu_y + 1) * component.v {
                    for x in mcu_x * component.h..(mcu_x + 1) * component.h {
                        blocks.with(part.component, x, y, |block| entropy.block(i, block))?;
                    }
                }
            }
        }
        entropy.check()?;
    }
    Ok(())
}

#[inline(always)]
fn begin_mcu(entropy: &mut impl Entropy, restart: usize, left: &mut usize) -> Result<()> {
    if restart > 0 {
        if *left == 0 {
            entropy.restart()?;
            *left = restart;
        }
        *left -= 1;
    }
    Ok(())
}
