//! Dead-code restarts [ours] (docs/design.md, section 1): a code that is hardly ever chosen is
//! replaced by a noisy vector v_t.
//!
//! Usage is a decayed count of choices over all t. At regular intervals, each code below 1 % of the
//! mean count is replaced by a v_t of the step's images, taken from any of its micro-batches and
//! drawn by counter over step t, image and position. Its moments are set to 0 and its average to
//! the new vector.

use candle_core::{Device, Result as TensorResult, Tensor, Var};

use super::optimizer::Optimizer;
use crate::error::{Context, Result};
use crate::rng::{Purpose, Stream};
use crate::world::World;

/// Of the counts, each step.
pub const DECAY: f32 = 0.99;
/// As a fraction of the mean count.
const DEAD_BELOW: f32 = 0.01;
const CODEBOOK: &str = "quantize.embedding.weight";

#[derive(Debug, Clone)]
pub struct DeadCodes {
    /// [K]
    counts: Vec<f32>,
}

impl DeadCodes {
    pub fn new(codes: usize) -> Self {
        Self {
            counts: vec![0.0; codes],
        }
    }

    /// With these counts.
    #[cfg(feature = "cuda")]
    pub fn of(counts: Vec<f32>) -> Self {
        Self { counts }
    }

    /// Updates the decayed usage counts with this step's code choices [T][K].
    pub fn count(&mut self, choices: &[Vec<u64>]) {
        self.counts.iter_mut().for_each(|n| *n *= DECAY);
        for of_step in choices {
            self.counts
                .iter_mut()
                .zip(of_step)
                .for_each(|(n, &m)| *n += m as f32);
        }
    }

    /// Those below 1 % of the mean count, in ascending order.
    pub fn dead(&self) -> Vec<usize> {
        let total: f64 = self.counts.iter().map(|&n| f64::from(n)).sum();
        let least = DEAD_BELOW * (total / self.counts.len() as f64) as f32;
        let is_dead = |&k: &usize| self.counts[k] < least;
        (0..self.counts.len()).filter(is_dead).collect()
    }

    /// The counts, [K] f32, for the checkpoint.
    pub fn tensor(&self) -> TensorResult<Tensor> {
        Tensor::new(self.counts.as_slice(), &Device::Cpu)
    }

    /// Restores the counts from what [`DeadCodes::tensor`] returned.
    pub fn restore(&mut self, tensor: &Tensor) -> TensorResult<()> {
        self.counts = tensor.to_vec1()?;
        Ok(())
    }
}

/// Sets `codes`, in ascending order, of `optimizer`'s codebook at `step` to rows of the `noisy`
/// [T,B,h,w,d] of all micro-batches of `world`, drawn as if these were one batch; `noisy` has this
/// process's.
pub fn restart(
    world: &World,
    codes: &[usize],
    optimizer: &Optimizer,
    noisy: &[&Tensor],
    seed: u64,
    step: u64,
) -> Result<()> {
    if codes.is_empty() {
        return Ok(());
    }
    let fresh = draw(world, noisy, codes.len(), seed, step)?;
    let zeros = vec![vec![0.0; fresh[0].len()]; fresh.len()];
    let missing = "the tokenizer has a codebook";
    let codebook = optimizer.params.get(CODEBOOK).context(missing)?;
    set_rows(codebook, codes, &fresh)?;
    for moment in optimizer.moments(CODEBOOK).context(missing)? {
        set_rows(moment, codes, &zeros)?;
    }
    if let Some(average) = optimizer.ema.as_ref().and_then(|ema| ema.get(CODEBOOK)) {
        set_rows(average, codes, &fresh)?;
    }
    Ok(())
}

/// `count` vectors [d] drawn from the `noisy` [T,B,h,w,d] of all micro-batches of `world`, whose B
/// are equal.
fn draw(
    world: &World,
    noisy: &[&Tensor],
    count: usize,
    seed: u64,
    step: u64,
) -> Result<Vec<Vec<f32>>> {
    let first = noisy.first().context("a step has a micro-batch")?;
    let (times, b, h, w, width) = first.dims5()?;
    let (micro_batches, at_t) = (noisy.len() * world.size(), b * h * w);
    let mut draws = Stream::new(seed, Purpose::Restart, step, 0).draws();
    let rows = (times * micro_batches * at_t) as u32; // of [T·B·h·w,d], B of all micro-batches
    let drawn: Vec<usize> = (0..count).map(|_| draws.below(rows) as usize).collect();
    // Bits, and 0 for what is another process's: their sum is exact, of −0 too.
    let mut bits = vec![0u64; count * width];
    for (own, noisy) in (0..).zip(noisy) {
        let micro_batch = world.share().micro_batch(own) as usize;
        let (mut places, mut found) = (Vec::new(), Vec::new());
        for (place, row) in drawn.iter().enumerate() {
            let (t, at) = (row / (micro_batches * at_t), row % (micro_batches * at_t));
            if at / at_t == micro_batch {
                places.push(place);
                found.push((t * at_t + at % at_t) as u32);
            }
        }
        if found.is_empty() {
            continue;
        }
        let found = Tensor::new(found, noisy.device())?;
        let found = noisy.flatten_to(3)?.index_select(&found, 0)?;
        for (place, row) in places.into_iter().zip(found.to_vec2::<f32>()?) {
            let bits = bits[place * width..][..width].iter_mut();
            bits.zip(row)
                .for_each(|(to, x)| *to = u64::from(x.to_bits()));
        }
    }
    world.sum(&mut bits)?;
    let row = |bits: &[u64]| bits.iter().map(|&x| f32::from_bits(x as u32)).collect();
    Ok(bits.chunks(width).map(row).collect())
}

/// Sets row rows[i] of `var` [K,d] to row i of `values`; `rows` is ascending.
fn set_rows(var: &Var, rows: &[usize], values: &[Vec<f32>]) -> Result<()> {
    let mut all = var.to_vec2::<f32>()?;
    for (&row, value) in rows.iter().zip(values) {
        all[row].clone_from(value);
    }
    var.set(&Tensor::new(all, var.device())?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrainConfig;
    use crate::store::{Init, Scope};

    #[test]
    fn a_code_that_is_never_chosen_takes_a_noisy_vector() -> Result<()> {
        let scope = Scope::init(1, &Device::Cpu);
        let normal = Init::Normal {
            mean: 0.0,
            std: 1.0,
        };
        scope
            .push("quantize.embedding")
            .get("weight", (4, 2), normal)?;
        let optimizer = Optimizer::new(scope.finish(), &TrainConfig::vae(), true)?;
        let codebook = optimizer.params.get(CODEBOOK).expect("just made");
        let before = codebook.to_vec2::<f32>()?;
        for moment in optimizer.moments(CODEBOOK).expect("a moment a parameter") {
            moment.set(&moment.ones_like()?)?;
        }
        let mut codes = DeadCodes::new(4);
        codes.count(&[vec![100, 0, 0, 40], vec![3, 90, 0, 60]]);
        // [T,B,h,w,d] = [2,1,1,3,2]: rows (0,1), (2,3) ..
        let noisy = Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape(&[2, 1, 1, 3, 2])?;
        let dead = codes.dead();
        assert_eq!(dead, [2]);
        restart(&World::alone(), &dead, &optimizer, &[&noisy], 5, 99)?;
        let after = codebook.to_vec2::<f32>()?;
        assert_eq!(after[2][0] % 2.0, 0.0);
        assert_eq!(after[2][1], after[2][0] + 1.0);
        assert_eq!(
            [&after[0], &after[1], &after[3]],
            [&before[0], &before[1], &before[3]]
        );
        let ema = optimizer
            .ema
            .as_ref()
            .and_then(|e| e.get(CODEBOOK))
            .expect("an average");
        assert_eq!(ema.to_vec2::<f32>()?, after);
        for moment in optimizer.moments(CODEBOOK).expect("a moment a parameter") {
            let rows = moment.to_vec2::<f32>()?;
            assert_eq!((&rows[1], &rows[2]), (&vec![1.0; 2], &vec![0.0; 2]));
        }
        Ok(())
    }

    #[test]
    fn micro_batches_are_drawn_from_as_one_batch() -> Result<()> {
        let restarted = |noisy: &[&Tensor]| -> Result<Vec<Vec<f32>>> {
            let scope = Scope::init(1, &Device::Cpu);
            scope
                .push("quantize.embedding")
                .get("weight", (32, 2), Init::Zeros)?;
            let optimizer = Optimizer::new(scope.finish(), &TrainConfig::vae(), true)?;
            let mut codes = DeadCodes::new(32);
            codes.count(&[(0..32).map(|k| u64::from(k == 0)).collect()]);
            let dead = codes.dead();
            assert_eq!(dead.len(), 31);
            restart(&World::alone(), &dead, &optimizer, noisy, 5, 99)?;
            let codebook = optimizer.params.get(CODEBOOK).expect("just made");
            Ok(codebook.to_vec2()?)
        };
        // [T,B,h,w,d] = [2,4,1,1,2]
        let whole = Tensor::arange(1f32, 17.0, &Device::Cpu)?.reshape(&[2, 4, 1, 1, 2])?;
        let [first, last] = [whole.narrow(1, 0, 2)?, whole.narrow(1, 2, 2)?];
        assert_eq!(restarted(&[&first, &last])?, restarted(&[&whole])?);
        Ok(())
    }

    #[test]
    fn counts_fade_by_the_step_and_survive_a_checkpoint() -> Result<()> {
        let mut codes = DeadCodes::new(2);
        codes.count(&[vec![1, 1], vec![0, 1]]);
        codes.count(&[vec![0, 1], vec![0, 0]]);
        assert_eq!(codes.counts, [DECAY, 2.0 * DECAY + 1.0]);
        assert!(codes.dead().is_empty());
        for _ in 0..700 {
            codes.count(&[vec![0, 1]]);
        }
        assert_eq!(codes.dead(), [0]);
        let mut other = DeadCodes::new(2);
        other.restore(&codes.tensor()?)?;
        assert_eq!(other.counts, codes.counts);
        Ok(())
    }
}
