//! The generator (Table 1): LLaMA-style blocks with AdaLN-Zero that predict the codes of step t.
//!
//! Noise ε_t and sum z'_{t−1}, each [B,h,w,d], and the condition [B,C] → logits [B,N,K], tokens in raster order.

use candle_core::{DType, Result, Tensor, Var, bail};

use super::layers::Linear;
use super::pseudo_inverse::pseudo_inverse;
use crate::config::{Config, Rope};
use crate::ops::{self, RopeKind, RopeTable, arrange};
use crate::store::{Init, Scope};

/// Frequencies of the time features: half of them cosines, half sines.
const TIME_FEATURES: usize = 256;
const EPS: f64 = 1e-6;

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
}

/// AdaLN-Zero: every modulation and the head start at zero, so that a block is the identity and all codes are alike.
const ZERO: Init = Init::Zeros;

impl Generator {
    /// `classes` without the empty condition, which is label number `classes`.
    pub fn new(config: &Config, classes: usize, scope: &Scope) -> Result<Self> {
        let scope = &scope.clone().fast();
        let (generator, d) = (&config.generator, config.tokenizer.embed_dim);
        let (c, heads) = (generator.width(), generator.heads());
        let mix = generator.mix_dim(d);
        let side = config.grid();
        let kind = match generator.rope {
            Rope::OneD => RopeKind::OneD,
            Rope::TwoD => RopeKind::TwoD,
        };
        let normal = |std| Init::Normal { mean: 0.0, std };
        let xavier = Init::XavierUniform;
        let time = |i: usize, input| {
            let scope = scope.push("t_embedder").push(i);
            Linear::new(input, c, normal(generator.time_std), &scope)
        };
        let block = |i| Block::new(c, heads, &scope.push("blocks").push(i));
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
                kind,
                scope.device(),
            )?,
            blocks: (0..generator.depth).map(block).collect::<Result<_>>()?,
            adaln: Linear::new(c, 2 * c, ZERO, &scope.push("adaLN_modulation"))?,
            head: Linear::new(c, config.quantizer.codebook_size, ZERO, &scope.push("head"))?,
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
        let x = self.embed(noise, sum)?;
        let x = self.transform(&x, &self.modulation(condition)?)?;
        self.head(&x)
    }

    /// ε_t and z'_{t−1}, [B,h,w,d] each → the blocks' input [B,N,C].
    pub fn embed(&self, noise: &Tensor, sum: &Tensor) -> Result<Tensor> {
        let (b, h, w, d) = noise.dims4()?;
        let x = Tensor::cat(&[noise, sum], 3)?.reshape((b, h * w, 2 * d))?;
        let x = self.x_embedder.forward(&self.mix.forward(&x)?)?; // [B,N,C]
        match &self.pos_embed {
            Some(pos) => ops::add_to_each(&x, pos),
            None => Ok(x),
        }
    }

    /// What the blocks make of x [B,N,C], normalised and modulated for the head.
    pub fn transform(&self, x: &Tensor, modulation: &Modulation) -> Result<Tensor> {
        let mut x = x.clone();
        for (block, parts) in self.blocks.iter().zip(&modulation.blocks) {
            x = block.forward(&x, parts, &self.rope)?;
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
        Ok(Modulation {
            blocks: blocks
                .map(|block| parts(&block.adaln.forward(condition)?))
                .collect::<Result<_>>()?,
            last: parts(&self.adaln.forward(condition)?)?,
        })
    }

    /// Starts the head from the codebook [K,d] [ours]: logit_k = −s/2·‖v − e_k‖² up to a constant, with v read from
    /// the directions that the noise takes in the stream.
    ///
    /// Errors: the mixed width is below 2d, so that noise and sum are not apart; the noise's directions are nearly
    /// dependent; the parameters are not this generator's own variables.
    pub fn head_from_codebook(&self, codebook: &Tensor, scale: f64) -> Result<()> {
        let (mixed, inputs) = self.mix.weight.dims2()?;
        let d = inputs / 2;
        if mixed < inputs {
            bail!(
                "the head cannot start from the codebook: noise and sum are mixed into {mixed} values, which takes {inputs} (generator.mix_dim)"
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

/// AdaLN-Zero's shift, scale and gate [R,C] of each branch and block, a row a condition.
pub struct Modulation {
    blocks: Vec<[Tensor; 6]>,
    /// Shift and scale in front of the head.
    last: [Tensor; 2],
}

impl Modulation {
    /// The rows of these numbers; those that follow one another are not copied.
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

/// The `N` equal parts of a row's columns.
fn parts<const N: usize>(x: &Tensor) -> Result<[Tensor; N]> {
    let all = arrange::columns(x, N)?;
    Ok(all.try_into().expect("N parts"))
}

/// Sets a parameter that is a variable.
fn set(parameter: &Tensor, value: &Tensor) -> Result<()> {
    if !parameter.is_variable() {
        bail!("only fresh parameters can start from the codebook");
    }
    Var::from_tensor(parameter)?.set(value)
}

/// 8C/3 to the nearest multiple of 32: the width that meets Table 1's 133 / 310 / 602 M.
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

/// x + g₁·attention(m₁(x)), then x + g₂·SwiGLU(m₂(x)), m_i = RMSNorm with shift and scale from the condition.
struct Block {
    qkv: Linear,
    proj: Linear,
    w12: Linear,
    w3: Linear,
    adaln: Linear,
    heads: usize,
}

impl Block {
    fn new(c: usize, heads: usize, scope: &Scope) -> Result<Self> {
        let (attn, mlp) = (scope.push("attn"), scope.push("mlp"));
        let (f, xavier) = (swiglu_width(c), Init::XavierUniform);
        Ok(Self {
            qkv: Linear::unbiased(c, 3 * c, xavier, &attn.push("qkv"))?,
            proj: Linear::unbiased(c, c, xavier, &attn.push("proj"))?,
            w12: Linear::unbiased(c, 2 * f, xavier, &mlp.push("w12"))?,
            w3: Linear::unbiased(f, c, xavier, &mlp.push("w3"))?,
            adaln: Linear::new(c, 6 * c, ZERO, &scope.push("adaLN_modulation"))?,
            heads,
        })
    }

    /// `m`: shift, scale, gate of each branch [B,C].
    fn forward(&self, x: &Tensor, m: &[Tensor; 6], rope: &RopeTable) -> Result<Tensor> {
        let branch = self.attention(&ops::rms_norm_modulate(x, &m[0], &m[1], EPS)?, rope)?;
        let x = ops::gate_residual(x, &m[2], &branch)?;
        let branch = self.mlp(&ops::rms_norm_modulate(&x, &m[3], &m[4], EPS)?)?;
        ops::gate_residual(&x, &m[5], &branch)
    }

    fn attention(&self, x: &Tensor, rope: &RopeTable) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // [B,N,3C]
        self.proj
            .forward(&ops::attention(&qkv, self.heads, Some(rope))?)
    }

    fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        self.w3.forward(&self.w12.forward_swiglu(x)?)
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
        // Noise that is exactly a code, at each of the 64 positions, and no sum.
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
        // RMSNorm shrinks or stretches what is read, so that a few codes may be mistaken.
        assert!(hits >= 40, "{hits} of 64");
        Ok(())
    }
}
