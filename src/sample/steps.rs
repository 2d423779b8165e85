//! Sampling one step at a time: each z'_t can be shown as soon as it is drawn, and images that
//! nobody waits for any more can leave the batch.
//!
//! An image has the bits that [`Sampler::latents`] gives it: on a CPU whatever else is in its
//! batch.

use candle_core::Tensor;

use super::options::SampleOptions;
use super::sampler::{Draws, Sampler};
use crate::error::Result;

/// One image of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub label: u32,
    pub seed: u64,
    /// Its number among the images of this seed.
    pub number: u64,
}

/// A batch that is being drawn.
pub struct Steps<'a> {
    sampler: &'a Sampler<'a>,
    options: SampleOptions,
    batch: Vec<Sample>,
    /// The steps that are drawn.
    t: usize,
    /// z'_t [B,h,w,d]
    sum: Tensor,
    /// z'_1 .. z'_T of a GPU, which draws all steps at once.
    #[cfg(feature = "cuda")]
    drawn: Vec<Tensor>,
}

impl<'a> Steps<'a> {
    /// Before the first step. GPU kernels draw all steps here, one seed after the other.
    ///
    /// Errors: no images; a label outside the classes; on a GPU, logits that are not finite.
    pub fn new(
        sampler: &'a Sampler<'a>,
        batch: Vec<Sample>,
        options: &SampleOptions,
    ) -> Result<Self> {
        anyhow::ensure!(!batch.is_empty(), "a batch needs an image");
        sampler.check_labels(&labels(&batch))?;
        Ok(Self {
            sampler,
            options: *options,
            t: 0,
            sum: sampler.start(batch.len())?,
            #[cfg(feature = "cuda")]
            drawn: match sampler.gpu() {
                Some(gpu) => drawn(gpu, &batch, options)?,
                None => Vec::new(),
            },
            batch,
        })
    }

    /// Draws the next step: t and z'_t [B,h,w,d]; none after the last.
    ///
    /// Errors: logits that are not finite.
    pub fn advance(&mut self) -> Result<Option<(usize, &Tensor)>> {
        if self.t == self.sampler.steps() {
            return Ok(None);
        }
        self.t += 1;
        #[cfg(feature = "cuda")]
        if let Some(sum) = self.drawn.get(self.t - 1) {
            self.sum = sum.clone();
            return Ok(Some((self.t, &self.sum)));
        }
        let seeds: Vec<u64> = self.batch.iter().map(|sample| sample.seed).collect();
        let indices: Vec<u64> = self.batch.iter().map(|sample| sample.number).collect();
        let draws = Draws::Each {
            seeds: &seeds,
            indices: &indices,
        };
        let labels = labels(&self.batch);
        let step = self
            .sampler
            .step(self.t, &self.sum, &labels, &draws, &self.options);
        self.sum = step?;
        Ok(Some((self.t, &self.sum)))
    }

    /// Goes on with the images at these places of the batch alone, at least one.
    pub fn keep(&mut self, places: &[usize]) -> Result<()> {
        anyhow::ensure!(!places.is_empty(), "a batch needs an image");
        if places.len() == self.batch.len() {
            return Ok(());
        }
        let rows: Vec<u32> = places.iter().map(|place| *place as u32).collect();
        let rows = Tensor::new(rows, self.sum.device())?;
        self.sum = self.sum.index_select(&rows, 0)?;
        #[cfg(feature = "cuda")]
        for sum in &mut self.drawn {
            *sum = sum.index_select(&rows, 0)?;
        }
        self.batch = places.iter().map(|place| self.batch[*place]).collect();
        Ok(())
    }
}

fn labels(batch: &[Sample]) -> Vec<u32> {
    batch.iter().map(|sample| sample.label).collect()
}

/// z'_1 .. z'_T of a batch by the GPU's kernels, which take one seed at a time.
#[cfg(feature = "cuda")]
fn drawn(
    gpu: &super::gpu::GpuSampler,
    batch: &[Sample],
    options: &SampleOptions,
) -> Result<Vec<Tensor>> {
    let mut steps: Vec<Vec<Tensor>> = Vec::new();
    for part in batch.chunk_by(|a, b| a.seed == b.seed) {
        let numbers: Vec<u64> = part.iter().map(|sample| sample.number).collect();
        let sums = gpu.latents(&labels(part), part[0].seed, &numbers, options)?;
        steps.resize_with(sums.len(), Vec::new);
        let pairs = steps.iter_mut().zip(sums);
        pairs.for_each(|(parts, sum)| parts.push(sum));
    }
    let joined = steps.iter().map(|parts| Tensor::cat(parts, 0));
    Ok(joined.collect::<candle_core::Result<_>>()?)
}
