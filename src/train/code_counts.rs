//! Code choices during training: their usage since the last validation, and the fading counts that
//! say which codes are dead. On a GPU they are counted there and read when they are asked for, so
//! that no step waits for them.

#[cfg(feature = "cuda")]
pub mod check;

use candle_core::{Device, Tensor};

#[cfg(feature = "cuda")]
use super::dead_codes::DECAY;
use super::dead_codes::DeadCodes;
use super::usage::{Usage, choices};
use crate::error::Result;
#[cfg(feature = "cuda")]
use crate::ops::code_counts::CodeCounter;
use crate::world::World;

pub struct CodeCounts {
    steps: usize,
    size: usize,
    /// Without what the counter has.
    usage: Usage,
    /// Where there is a counter, its own counts hold instead.
    dead_codes: DeadCodes,
    #[cfg(feature = "cuda")]
    counter: Option<CodeCounter>,
}

impl CodeCounts {
    /// Of `size` codes at each of `steps`, chosen on `device`.
    pub fn new(steps: usize, size: usize, device: &Device) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            steps,
            size,
            usage: Usage::new(steps, size),
            dead_codes: DeadCodes::new(size),
            #[cfg(feature = "cuda")]
            counter: match device {
                Device::Cuda(cuda) => Some(CodeCounter::new(cuda, steps, size, DECAY)?),
                _ => None,
            },
        })
    }

    /// Counts a step's choices, u32 [T,B,h,w] of each micro-batch of this process, and those of all
    /// others.
    pub fn count<'a>(
        &mut self,
        world: &World,
        codes: impl IntoIterator<Item = &'a Tensor>,
    ) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(counter) = &mut self.counter {
            let of_all = |own: &_| world.sum_buffers(&[], &[own]);
            counter.count(codes, world.size(), of_all)?;
            if counter.is_full() {
                self.usage.add(&counter.totals()?);
                counter.clear_totals()?;
            }
            return Ok(());
        }
        let mut choices = choices(codes, self.steps, self.size)?;
        for of_step in &mut choices {
            world.sum(of_step)?;
        }
        self.usage.add(&choices);
        self.dead_codes.count(&choices);
        Ok(())
    }

    /// Usage since [`CodeCounts::clear_usage`].
    pub fn usage(&self) -> Result<Usage> {
        #[cfg(feature = "cuda")]
        if let Some(counter) = &self.counter {
            let mut usage = self.usage.clone();
            usage.add(&counter.totals()?);
            return Ok(usage);
        }
        Ok(self.usage.clone())
    }

    pub fn clear_usage(&mut self) -> Result<()> {
        self.usage.clear();
        #[cfg(feature = "cuda")]
        if let Some(counter) = &mut self.counter {
            counter.clear_totals()?;
        }
        Ok(())
    }

    /// The fading counts.
    pub fn dead_codes(&self) -> Result<DeadCodes> {
        #[cfg(feature = "cuda")]
        if let Some(counter) = &self.counter {
            return Ok(DeadCodes::of(counter.faded()?));
        }
        Ok(self.dead_codes.clone())
    }

    /// Restores what [`Usage::tensor`] and [`DeadCodes::tensor`] returned.
    pub fn restore(&mut self, usage: &Tensor, dead_codes: &Tensor) -> Result<()> {
        self.usage.restore(usage)?;
        self.dead_codes.restore(dead_codes)?;
        #[cfg(feature = "cuda")]
        if let Some(counter) = &mut self.counter {
            counter.clear_totals()?;
            counter.set_faded(&dead_codes.to_vec1::<f32>()?)?;
        }
        Ok(())
    }
}
