//! The generator (Table 1): LLaMA-style blocks with AdaLN-Zero that predict the codes of step t.
//!
//! Noise ε_t and sum z'_{t−1}, each [B,h,w,d], and the condition [B,C] → logits [B,N,K], tokens in
//! raster order.

#[cfg(feature = "cuda")]
pub mod fused;

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::layers::Linear;
use super::pseudo_inverse::pseudo_inverse;
use crate::config::{Config, Rope};
use crate::ops::{self, Dropout, Normed, RopeKind, RopeTable, arrange};
use crate::store::{Init, Scope};

/// Number of time features, half cosines, half sines.
pub const TIME_FEATURES: usize = 256;
/// Of all RMSNorms.
pub const EPS: f64 = 1e-6;

impl From<Rope> for RopeKind {
    fn from(rope: Rope) -> Self {
        match rope {
            Rope::OneD => Self::OneD,
            Rope::TwoD => Self::TwoD,
        }
    }
}

pub struct Generator {
    mix: Linear,
    x_embedder: Linear,
    pos_embed: Option<Tensor>,
    y_embedder: Tensor,
    t_embedder: (Linear, Linear),
    rope: RopeTable,
    blocks: Vec<Block>,
    adaln: Linear,
    head: Linear,
    /// See [`Generator::sources`]; none if the weights may still change.
    sources: Option<OnceLock<Tensor>>,
}

/// AdaLN-Zero: all modulations and the head start at zero, so that every block is the identity and
/// all codes are equally likely.
const ZERO: Init = Init::Zeros;

impl Generator {
    /// `classes` does not count the empty condition, whose label is `classes`.
    pub fn new(config: &Config, classes: usize, scope: &Scope) -> Result<Self> {
        let (generator, d) = (&config.generator, config.tokenizer.embed_dim);
        let (c, heads) = (generator.width(), generator.heads());
        let mix = generator.mix_dim(d);
        let side = config.grid();
        let normal = |std| Init::Normal { mean: 0.0, std };
        let xavier = Init::XavierUniform;
        let time = |i: usize, input| {
            let scope = scope.push("t_embedder").push(i);
            Linear::new(input, c, normal(generator.time_std), &scope)
        };
        let block = |i| {
            let scope = scope.push("blocks").push(i);
            Block::new(c, heads, generator.adaln_rank, &scope)
        };
        Ok(Self {
            mix: Linear::new(2 * d, mix, xavier, &scope.push("mix"))?,
            x_embedder: Linear::new(mix, c, xavier, &scope.push("x_embedder"))?,
            pos_embed: match generator.pos_embed {
                0.0 => None,
                std => Some(scope.get("pos_embed", (1, config.tokens(), c), normal(std))?),
            },
            y_embedder: scope.push("y_embedder").get(
                "weight",
                (classes + 1, c),
                normal(generator.label_std),
            )?,
            t_embedder: (time(0, TIME_FEATURES)?, time(2, c)?),
            rope: RopeTable::new(
                (side, side),
                c / heads,
                generator.rope_base,
                RopeKind::from(generator.rope),
                scope.device(),
            )?,
            blocks: (0..generator.depth).map(block).collect::<Result<_>>()?,
            adaln: Linear::new(c, 2 * c, ZERO, &scope.push("adaLN_modulation"))?,
            head: Linear::new(c, config.quantizer.codebook_size, ZERO, &scope.push("head"))?,
            sources: match scope.packed() {
                Some(_) if scope.device().is_cpu() && 2 * d < c => Some(OnceLock::new()),
                _ => None,
            },
        })
    }

    /// Labels u32 [B] (`classes` = none) and steps t u32 [B] in 1..T → SiLU(time + label) [B,C].
    pub fn condition(&self, labels: &Tensor, t: &Tensor) -> Result<Tensor> {
        let time = self.t_embedder.0.forward(&time_features(t)?)?;
        let time = self.t_embedder.1.forward(&ops::silu(&time)?)?;
        let label = ops::lookup(&self.y_embedder, labels)?;
        ops::silu(&ops::add(&time, &label)?)
    }

    pub fn forward(&self, noise: &Tensor, sum: &Tensor, condition: &Tensor) -> Result<Tensor> {
        self.forward_dropping(noise, sum, condition, None)
    }

    /// [`Generator::forward`] in training, with dropout where it is asked for.
    pub fn forward_dropping(
        &self,
        noise: &Tensor,
        sum: &Tensor,
        condition: &Tensor,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        let x = self.embed(noise, sum)?;
        let x = self.blocks(&x, &self.modulation(condition)?, dropout)?;
        self.head(&x)
    }

    /// ε_t and z'_{t−1}, [B,h,w,d] each → the blocks' input.
    pub fn embed(&self, noise: &Tensor, sum: &Tensor) -> Result<Embedded> {
        let (b, h, w, d) = noise.dims4()?;
        let inputs = Tensor::cat(&[noise, sum], 3)?.reshape((b, h * w, 2 * d))?;
        let x = self.x_embedder.forward(&self.mix.forward(&inputs)?)?; // [B,N,C]
        let x = match &self.pos_embed {
            Some(pos) => ops::add_to_each(&x, pos)?,
            None => x,
        };
        Ok(Embedded { inputs, x })
    }

    /// The output of the blocks [B,N,C], normalized and modulated for the head.
    pub fn transform(&self, embedded: &Embedded, modulation: &Modulation) -> Result<Tensor> {
        self.blocks(embedded, modulation, None)
    }

    fn blocks(
        &self,
        embedded: &Embedded,
        modulation: &Modulation,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        let Embedded { inputs, x } = embedded;
        let mut x = x.clone();
        for (i, (block, parts)) in self.blocks.iter().zip(&modulation.blocks).enumerate() {
            let qkv = match &modulation.first {
                Some(projected) if i == 0 => ops::rms_norm_projected(inputs, &x, projected, EPS)?,
                _ => block.qkv(&x, parts)?,
            };
            x = block.forward(&x, &qkv, parts, &self.rope, dropout.map(|d| (d, i)))?;
        }
        let [shift, scale] = &modulation.last;
        ops::rms_norm_modulate(&x, shift, scale, EPS)
    }

    /// x [B,N,C] → logits [B,N,K].
    pub fn head(&self, x: &Tensor) -> Result<Tensor> {
        self.head.forward(x)
    }

    /// Every block's and the head's modulation by the condition [R,C].
    pub fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        let blocks = self.blocks.iter();
        let blocks: Vec<[Tensor; 6]> = blocks
            .map(|block| parts(&block.modulation(condition)?))
            .collect::<Result<_>>()?;
        let first = match (self.sources()?, self.blocks.first()) {
            (Some(sources), Some(block)) => Some(block.projected(sources, &blocks[0])?),
            _ => None,
        };
        Ok(Modulation {
            blocks,
            last: parts(&self.adaln.forward(condition)?)?,
            first,
        })
    }

    /// Puts all large weights in reading order, side by side, for a CPU: at their first use, the
    /// threads that sample would wait for the one that does it.
    pub fn pack(&self) -> Result<()> {
        fn of_block(block: &Block) -> [&Linear; 4] {
            [&block.qkv, &block.proj, &block.w12, &block.w3]
        }
        let layers = self.blocks.iter().flat_map(of_block).chain([&self.head]);
        let layers: Vec<&Linear> = layers.collect();
        layers.into_par_iter().try_for_each(Linear::pack)
    }

    /// The blocks' input is a linear function of the 2d inputs plus an embedding: the rows of that
    /// function [2d,C], then the embedding [N,C], or [1,C] if it is the same everywhere. From
    /// their projections the first block's q, k and v take 2d multiply-adds each instead of C.
    fn sources(&self) -> Result<Option<&Tensor>> {
        let Some(once) = &self.sources else {
            return Ok(None);
        };
        if let Some(sources) = once.get() {
            return Ok(Some(sources));
        }
        let rows = self.mix.weight.t()?.contiguous()?; // [2d,mix]
        let rows = ops::linear(&rows, &self.x_embedder.weight, None)?; // [2d,C]
        // Of inputs that are zero: the biases alone, [1,C].
        let zero = Tensor::zeros((1, rows.dim(0)?), DType::F32, rows.device())?;
        let bias = self.x_embedder.forward(&self.mix.forward(&zero)?)?;
        let embedding = match &self.pos_embed {
            Some(pos) => pos.squeeze(0)?.broadcast_add(&bias)?, // [N,C]
            None => bias,
        };
        let sources = Tensor::cat(&[rows, embedding], 0)?;
        Ok(Some(once.get_or_init(|| sources)))
    }

    /// Initialises the head from the codebook [K,d] [ours]: logit_k = −s/2·‖v − e_k‖² up to a
    /// constant, with v reconstructed from the directions of the noise in the residual stream.
    ///
    /// Errors: the mixed width is below 2d, so that noise and sum cannot be separated; the noise's
    /// directions are nearly dependent; the parameters are not this generator's own variables.
    pub fn head_from_codebook(&self, codebook: &Tensor, scale: f64) -> Result<()> {
        let (mixed, inputs) = self.mix.weight.dims2()?;
        let d = inputs / 2;
        if mixed < inputs {
            bail!(
                "the head cannot start from the codebook: noise and sum are mixed into {mixed} values, but {inputs} are needed (generator.mix_dim)"
            );
        }
        let stream = self.x_embedder.weight.matmul(&self.mix.weight)?.detach(); // [C,2d]
        let size = stream.sqr()?.sum(1)?.mean_all()?.sqrt()?;
        let read = pseudo_inverse(&stream.narrow(1, 0, d)?.contiguous()?)?; // [d,C]
        let read = read.broadcast_mul(&size)?;
        let codebook = codebook.detach().to_device(size.device())?;
        set(&self.head.weight, &(codebook.matmul(&read)? * scale)?)?;
        match &self.head.bias {
            Some(bias) => set(bias, &(codebook.sqr()?.sum(1)? * (-scale / 2.0))?),
            None => Ok(()),
        }
    }
}

/// The generator's inputs [ε ; z'] [B,N,2d], and x [B,N,C], the blocks' input made of them.
pub struct Embedded {
    inputs: Tensor,
    x: Tensor,
}

impl Embedded {
    /// The same images once more behind these.
    pub fn twice(&self) -> Result<Self> {
        Ok(Self {
            inputs: Tensor::cat(&[&self.inputs, &self.inputs], 0)?,
            x: Tensor::cat(&[&self.x, &self.x], 0)?,
        })
    }
}

/// AdaLN-Zero's shift, scale and gate [R,C] of each branch and block, one row per condition.
pub struct Modulation {
    blocks: Vec<[Tensor; 6]>,
    /// Shift and scale before the head.
    last: [Tensor; 2],
    /// q, k and v of the first block's modulated [`sources`](Generator::sources), and of its shift:
    /// [R,2d+N+1,3C].
    first: Option<Tensor>,
}

impl Modulation {
    /// The rows with these indices; consecutive rows are not copied.
    pub fn rows(&self, numbers: &[u32]) -> Result<Self> {
        let of = |x: &Tensor| match numbers {
            [first, ..] if numbers.iter().zip(*first..).all(|(a, b)| *a == b) => {
                x.narrow(0, *first as usize, numbers.len())
            }
            _ => x.index_select(&Tensor::new(numbers, x.device())?, 0),
        };
        let blocks = self.blocks.iter();
        Ok(Self {
            blocks: blocks.map(|m| each(m, of)).collect::<Result<_>>()?,
            last: each(&self.last, of)?,
            first: self.first.as_ref().map(of).transpose()?,
        })
    }
}

fn each<const N: usize>(
    tensors: &[Tensor; N],
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<[Tensor; N]> {
    let all = tensors.iter().map(f).collect::<Result<Vec<_>>>()?;
    Ok(all.try_into().expect("as many as there were"))
}

/// Splits a row's columns into `N` equal parts.
fn parts<const N: usize>(x: &Tensor) -> Result<[Tensor; N]> {
    let all = arrange::columns(x, N)?;
    Ok(all.try_into().expect("N parts"))
}

/// Sets a parameter that is a variable.
fn set(parameter: &Tensor, value: &Tensor) -> Result<()> {
    if !parameter.is_variable() {
        bail!("only new parameters can be initialised from the codebook");
    }
    Var::from_tensor(parameter)?.set(value)
}

/// 8C/3, rounded to the nearest multiple of 32: gives Table 1's 133 / 310 / 602 M parameters.
pub fn swiglu_width(c: usize) -> usize {
    (c as f64 / 12.0).round_ties_even() as usize * 32
}

/// t u32 [B] → [cos(t·f), sin(t·f)] [B,256], f_i = 10000^(−i/128).
fn time_features(t: &Tensor) -> Result<Tensor> {
    let half = TIME_FEATURES / 2;
    let frequency = |i| (-10_000f64.ln() * i as f64 / half as f64).exp() as f32;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?;
    let angles = t
        .to_dtype(DType::F32)?
        .unsqueeze(1)?
        .broadcast_mul(&frequencies)?;
    Tensor::cat(&[angles.cos()?, angles.sin()?], 1)
}

/// m(x), RMSNorm with shift and scale.
fn normed<'a>(x: &'a Tensor, shift: &'a Tensor, scale: &'a Tensor) -> Normed<'a> {
    Normed {
        x,
        shift,
        scale,
        eps: EPS,
    }
}

/// x + g₁·attention(m₁(x)), then x + g₂·SwiGLU(m₂(x)), m_i = RMSNorm with shift and scale from the
/// condition.
struct Block {
    qkv: Linear,
    proj: Linear,
    w12: Linear,
    w3: Linear,
    /// The narrow half of a modulation of low rank, C → R.
    narrow: Option<Linear>,
    /// The modulation, or its wide half, R → 6C.
    adaln: Linear,
    heads: usize,
}

impl Block {
    fn new(c: usize, heads: usize, rank: Option<usize>, scope: &Scope) -> Result<Self> {
        let (attn, mlp) = (scope.push("attn"), scope.push("mlp"));
        let (f, xavier) = (swiglu_width(c), Init::XavierUniform);
        let adaln = scope.push("adaLN_modulation");
        // A modulation of low rank starts at zero too, by its wide half.
        let (narrow, adaln) = match rank {
            Some(rank) => (
                Some(Linear::unbiased(c, rank, xavier, &adaln.push(0))?),
                Linear::new(rank, 6 * c, ZERO, &adaln.push(1))?,
            ),
            None => (None, Linear::new(c, 6 * c, ZERO, &adaln)?),
        };
        Ok(Self {
            qkv: Linear::unbiased(c, 3 * c, xavier, &attn.push("qkv"))?,
            proj: Linear::unbiased(c, c, xavier, &attn.push("proj"))?,
            w12: Linear::unbiased(c, 2 * f, xavier, &mlp.push("w12"))?,
            w3: Linear::unbiased(f, c, xavier, &mlp.push("w3"))?,
            narrow,
            adaln,
            heads,
        })
    }

    /// Shift, scale and gate of both branches by the condition [R,C]: [R,6C].
    fn modulation(&self, condition: &Tensor) -> Result<Tensor> {
        match &self.narrow {
            Some(narrow) => self.adaln.forward(&narrow.forward(condition)?),
            None => self.adaln.forward(condition),
        }
    }

    /// The attention's q, k and v [B,N,3C]; `m` as in [`Block::forward`].
    fn qkv(&self, x: &Tensor, m: &[Tensor; 6]) -> Result<Tensor> {
        self.qkv.forward_normed(normed(x, &m[0], &m[1]))
    }

    /// q, k and v of `sources` [M,C], scaled, and of the shift behind them: [R,M+1,3C] for `m` with
    /// R rows.
    fn projected(&self, sources: &Tensor, m: &[Tensor; 6]) -> Result<Tensor> {
        let scale = (m[1].unsqueeze(1)? + 1.0)?; // [R,1,C]
        let scaled = sources.unsqueeze(0)?.broadcast_mul(&scale)?;
        let rows = Tensor::cat(&[&scaled, &m[0].unsqueeze(1)?], 1)?;
        self.qkv.forward(&rows)
    }

    /// x [B,N,C] and its q, k and v; `m`: shift, scale, gate of each branch [B,C]; what drops
    /// elements of the second, and this block's number for it.
    fn forward(
        &self,
        x: &Tensor,
        qkv: &Tensor,
        m: &[Tensor; 6],
        rope: &RopeTable,
        dropout: Option<(&Dropout, usize)>,
    ) -> Result<Tensor> {
        let branch = ops::attention(qkv, self.heads, Some(rope))?;
        let x = self.proj.forward_gated(x, &m[2], &branch)?;
        let hidden = self.w12.forward_swiglu(normed(&x, &m[3], &m[4]))?;
        let Some((dropout, block)) = dropout else {
            return self.w3.forward_gated(&x, &m[5], &hidden);
        };
        let branch = dropout.apply(&self.w3.forward(&hidden)?, block)?;
        ops::gate_residual(&x, &m[5], &branch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, normal};
    use candle_core::Device;

    #[test]
    fn depths_12_16_20_have_the_parameters_of_table_1() -> Result<()> {
        for (depth, millions) in [(12, 133.4), (16, 310.2), (20, 602.6)] {
            let mut config = Config::default();
            config.generator.depth = depth;
            let scope = Scope::plan();
            Generator::new(&config, 1000, &scope)?;
            let count: usize = scope.shapes().values().map(|s| s.elem_count()).sum();
            let count = count as f64 / 1e6;
            assert!((count - millions).abs() < 0.05, "depth {depth}: {count} M");
        }
        Ok(())
    }

    #[test]
    fn a_planned_generator_is_the_built_one() -> Result<()> {
        let mut config = Config::default();
        config.data.image_size = 32;
        (config.generator.width, config.generator.heads) = (Some(96), Some(3));
        config.generator.pos_embed = 0.02;
        let (plan, built) = (Scope::plan(), Scope::init(1, &Device::Cpu));
        Generator::new(&config, 7, &plan)?;
        Generator::new(&config, 7, &built)?;
        let built: Vec<_> = built
            .finish()
            .iter()
            .map(|(name, var)| (name.to_string(), var.shape().clone()))
            .collect();
        assert_eq!(plan.shapes().into_iter().collect::<Vec<_>>(), built);
        Ok(())
    }

    /// The plan of a small model that ships: a full modulation would take 34 % of it.
    #[test]
    fn a_modulation_of_low_rank_takes_a_third_of_the_parameters_away() -> Result<()> {
        let mut config = Config::default();
        config.generator.depth = 8;
        (config.generator.width, config.generator.heads) = (Some(384), Some(6));
        let mut count = |rank| -> Result<usize> {
            config.generator.adaln_rank = rank;
            let scope = Scope::plan();
            Generator::new(&config, 200, &scope)?;
            Ok(scope.shapes().values().map(|s| s.elem_count()).sum())
        };
        let (full, low) = (count(None)?, count(Some(64))?);
        // A block's 384 × 2304 become 384 × 64 and 64 × 2304.
        assert_eq!(full - low, 8 * (384 * 2304 - 64 * (384 + 2304)));
        Ok(())
    }

    #[test]
    fn dropout_keeps_the_mean_and_depends_on_example_and_block_only() -> Result<()> {
        let x = Tensor::ones((2, 40, 64), DType::F32, &Device::Cpu)?;
        let of = |indices: &[u64], x: &Tensor, block| -> Result<Vec<f32>> {
            let dropout = Dropout {
                probability: 0.25,
                seed: 3,
                indices,
            };
            dropout.apply(x, block)?.flatten_all()?.to_vec1()
        };
        let both = of(&[7, 9], &x, 1)?;
        let kept = both.iter().filter(|&&x| x > 0.0).count() as f64;
        let (n, p) = (both.len() as f64, 0.75);
        assert!(
            (kept - n * p).abs() < 4.5 * (n * p * (1.0 - p)).sqrt(),
            "{kept} of {n}"
        );
        assert!(both.iter().all(|&x| x == 0.0 || x == 4.0 / 3.0));
        assert_eq!(of(&[9], &x.narrow(0, 0, 1)?, 1)?, both[both.len() / 2..]);
        assert_ne!(of(&[7, 9], &x, 2)?, both);
        Ok(())
    }

    #[test]
    fn the_codebook_head_knows_the_code_of_its_noise() -> Result<()> {
        let mut config = Config::default();
        config.data.image_size = 16;
        config.tokenizer.ch_mult = vec![1, 1];
        config.tokenizer.embed_dim = 4;
        config.quantizer.codebook_size = 16;
        (config.generator.depth, config.generator.width) = (1, Some(32));
        (config.generator.heads, config.generator.mix_dim) = (Some(2), Some(8));
        let generator = Generator::new(&config, 3, &Scope::init(1, &Device::Cpu))?;
        // Noise that equals a code, at each of the 64 positions, and no sum.
        let codebook = normal(1, Purpose::Noise, &[0], 1, &[16, 4], &Device::Cpu)?.squeeze(0)?;
        let codebook = (codebook * 2.0)?;
        generator.head_from_codebook(&codebook, 4.0)?;
        let codes: Vec<u32> = (0..64).map(|i| i % 16).collect();
        let index = Tensor::from_vec(codes.clone(), 64, &Device::Cpu)?;
        let noise = codebook.index_select(&index, 0)?.reshape((1, 8, 8, 4))?;
        let condition = generator.condition(
            &Tensor::new(&[0u32], &Device::Cpu)?,
            &Tensor::new(&[1u32], &Device::Cpu)?,
        )?;
        let logits = generator.forward(&noise, &noise.zeros_like()?, &condition)?;
        let found = logits.argmax(2)?.squeeze(0)?.to_vec1::<u32>()?;
        let hits = found.iter().zip(&codes).filter(|(a, b)| a == b).count();
        // RMSNorm rescales what is read, so that a few codes may be wrong.
        assert!(hits >= 40, "{hits} of 64");
        Ok(())
    }
}
