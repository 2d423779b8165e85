//! How often each of K codes is chosen at each of T steps, counted on a GPU, where the codes are:
//! totals, and counts over all steps that fade. Nothing is copied to the host but when it is read.

use candle_core::{CudaDevice, Result, Tensor};

use super::check as shapes;
use super::cuda::{Buffer, Gpu, View, grid_of, launch};

pub struct CodeCounter {
    gpu: std::sync::Arc<Gpu>,
    steps: usize,
    size: usize,
    /// Kept of the sums that fade from one count to the next.
    decay: f32,
    /// [T,K] of the batch that is being counted, otherwise zeros.
    now: Buffer<u32>,
    /// [T,K]
    totals: Buffer<u32>,
    /// [K]
    faded: Buffer<f32>,
    /// Choices a step that the totals hold at most.
    counted: u64,
}

impl CodeCounter {
    pub fn new(device: &CudaDevice, steps: usize, size: usize, decay: f32) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        Ok(Self {
            now: Buffer::zeros(&gpu, steps * size)?,
            totals: Buffer::zeros(&gpu, steps * size)?,
            faded: Buffer::zeros(&gpu, size)?,
            counted: 0,
            gpu,
            steps,
            size,
            decay,
        })
    }

    /// Counts the choices of one batch, of which this process has u32 [T,..] parts and as many as
    /// it each of `processes`; `of_all` makes of its counts [T,K] those of all.
    ///
    /// Errors: another number of steps; totals that may exceed 32 bits; those of `of_all`.
    pub fn count<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a Tensor>,
        processes: usize,
        of_all: impl FnOnce(&Buffer<u32>) -> crate::error::Result<()>,
    ) -> crate::error::Result<()> {
        for codes in parts {
            let codes = codes.flatten_from(1)?.contiguous()?;
            let each = codes.dim(1)?;
            shapes::shape("count_codes", "the codes", &codes, &[self.steps, each])?;
            self.counted += (each * processes) as u64;
            if self.counted > u32::MAX.into() {
                anyhow::bail!("count_codes: the totals were not read for too long");
            }
            let codes = View::<u32>::of(&codes)?;
            let grid = grid_of(codes.len(), 256);
            // SAFETY: steps·each codes; a code that is none of `size` is not counted.
            unsafe {
                launch!(self.gpu, "code_counts", "count_codes", grid, 256, 0;
                    codes, self.now.view_mut(), each as i64, codes.len() as i64, self.size as i32)?
            };
        }
        of_all(&self.now)?;
        let grid = grid_of(self.size, 256);
        // SAFETY: T·K counts and totals, K sums.
        unsafe {
            launch!(self.gpu, "code_counts", "add_counts", grid, 256, 0;
                self.now.view_mut(), self.totals.view_mut(), self.faded.view_mut(), self.steps as i32,
                self.size as i32, self.decay)?
        };
        Ok(())
    }

    /// The totals since they were cleared, [T][K]; waits for the GPU.
    pub fn totals(&self) -> Result<Vec<Vec<u64>>> {
        let totals = self.totals.read()?;
        let rows = totals.chunks_exact(self.size);
        Ok(rows
            .map(|row| row.iter().map(|&n| n.into()).collect())
            .collect())
    }

    /// Begins the totals anew.
    pub fn clear_totals(&mut self) -> Result<()> {
        self.counted = 0;
        self.totals.write(&vec![0; self.steps * self.size])
    }

    /// Whether the totals must soon be cleared, since they are kept in 32 bits.
    pub fn is_full(&self) -> bool {
        self.counted > u64::from(u32::MAX / 2)
    }

    /// The counts that fade, [K]; waits for the GPU.
    pub fn faded(&self) -> Result<Vec<f32>> {
        self.faded.read()
    }

    /// Sets what [`CodeCounter::faded`] returned.
    pub fn set_faded(&mut self, faded: &[f32]) -> Result<()> {
        if faded.len() != self.size {
            candle_core::bail!("{} counts of {} codes", faded.len(), self.size);
        }
        self.faded.write(faded)
    }
}
