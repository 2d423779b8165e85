//! What a run will need, before it starts: parameters by part, memory, FLOP per step, steps and
//! epochs.
//!
//! A multiply-add counts as two FLOP. A backward pass costs twice its forward pass. Memory is an
//! estimate: parameters, gradients, moments and average are exact; activations are what the
//! operations keep for the backward pass.

use std::collections::BTreeMap;
use std::fmt::Write;

use candle_core::Shape;

use crate::config::{ComputeType, Config, TrainConfig};
use crate::error::Result;
use crate::model::generator::{Generator, swiglu_width};
use crate::model::tokenizer::Tokenizer;
use crate::store::Scope;

type Shapes = BTreeMap<String, Shape>;

/// The estimate for one stage.
#[derive(Debug)]
pub struct RunEstimate {
    title: &'static str,
    /// Parameters by the first component of their names.
    parts: BTreeMap<String, usize>,
    /// FLOP per image, forward and backward.
    flop_per_image: f64,
    /// Bytes kept per image for the backward pass.
    activations_per_image: f64,
    config: TrainConfig,
    /// Images in the data set.
    images: u64,
    /// A line on what the data set contains.
    data: Option<String>,
}

impl RunEstimate {
    /// For train-vae, without VGG and discriminator.
    pub fn tokenizer(config: &Config, images: u64) -> Result<Self> {
        let shapes = tokenizer_shapes(config)?;
        let (multiplications, kept) = convolutions(config, &shapes);
        let bytes = config.train_vae.compute_type.dtype().size_in_bytes() as f64;
        Ok(Self {
            title: "train-vae",
            parts: parts(&shapes),
            flop_per_image: 3.0 * 2.0 * multiplications,
            activations_per_image: bytes * kept,
            config: config.train_vae.clone(),
            images,
            data: None,
        })
    }

    /// For train-gen; without a cache every image passes through the tokenizer's encoder.
    pub fn generator(config: &Config, classes: usize, cached: bool, images: u64) -> Result<Self> {
        let scope = Scope::plan();
        Generator::new(config, classes, &scope)?;
        let shapes = scope.shapes();
        let (g, n) = (&config.generator, config.tokens() as f64);
        let (c, depth, k) = (
            g.width() as f64,
            g.depth as f64,
            config.quantizer.codebook_size as f64,
        );
        // Matrices applied per token; modulations are applied once per image.
        let per_token: f64 = matrices(&shapes, |name| {
            !name.contains("embedder.") && !name.contains("adaLN") || name.starts_with("x_embedder")
        });
        let per_image: f64 = matrices(&shapes, |name| {
            name.contains("adaLN") || name.starts_with("t_embedder")
        });
        let attention = 2.0 * n * n * c * depth;
        let forward = 2.0 * (n * per_token + per_image + attention);
        let quantizer = 2.0 * n * k * (config.tokenizer.embed_dim * config.quantizer.steps) as f64;
        let encoder = match cached {
            true => 0.0,
            false => {
                let mut shapes = tokenizer_shapes(config)?;
                shapes.retain(|name, _| name.starts_with("encoder"));
                2.0 * convolutions(config, &shapes).0
            }
        };
        Ok(Self {
            title: "train-gen",
            parts: parts(&shapes),
            flop_per_image: 3.0 * forward + quantizer + encoder,
            activations_per_image: n * activations_per_token(config),
            config: config.train_gen.clone(),
            images,
            data: None,
        })
    }

    /// Adds a line on what the data set contains.
    pub fn of_data(self, data: String) -> Self {
        Self {
            data: Some(data),
            ..self
        }
    }

    /// The estimate as text.
    pub fn text(&self) -> String {
        let parameters: usize = self.parts.values().sum();
        let micro = self.config.micro_batch();
        let steps = self.config.total_steps(self.images);
        let epochs = steps as f64 * self.config.batch_size as f64 / self.images.max(1) as f64;
        // Weights, gradients, two moments and the average; with bf16 also a bf16 copy of the
        // weights.
        let bytes_a_parameter = match self.config.compute_type {
            ComputeType::F32 => 5 * 4,
            ComputeType::Bf16 => 5 * 4 + 2,
        };
        let weights = (bytes_a_parameter * parameters) as f64;
        let activations = self.activations_per_image * micro as f64;
        let mut text = format!(
            "{}: {} parameters\n",
            self.title,
            thousands(parameters as u64)
        );
        for (part, count) in &self.parts {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {part:<20} {:>14}", thousands(*count as u64));
        }
        if let Some(data) = &self.data {
            let _ = writeln!(text, "data: {data}");
        }
        let flop = self.flop_per_image * self.config.batch_size as f64;
        let _ = write!(
            text,
            "memory: about {} ({} weights, gradients, moments and average; {} activations of {micro} images)\n\
             compute: {:.3e} FLOP a step of {} images ({:.3e} an image), {:.3e} in all\n\
             length: {steps} steps, {epochs:.2} epochs of {} images\n",
            bytes(weights + activations),
            bytes(weights),
            bytes(activations),
            flop,
            self.config.batch_size,
            self.flop_per_image,
            flop * steps as f64,
            self.images,
        );
        text
    }
}

/// Bytes per token that the generator keeps for the backward pass or uses as workspace in it.
fn activations_per_token(config: &Config) -> f64 {
    let (g, k) = (&config.generator, config.quantizer.codebook_size);
    let (c, f, depth) = (g.width(), swiglu_width(g.width()), g.depth);
    let train = &config.train_gen;
    let bytes = match train.compute_type {
        // A block keeps 2 residuals, 2 norms, q|k|v, 2 branches and attention (10C), gate, up and
        // their elementwise product (8C).
        ComputeType::F32 => 4 * (18 * c * depth + 2 * k),
        // Inputs and outputs of every block, the activations of blocks that are not recomputed, and
        // shared buffers.
        ComputeType::Bf16 => {
            let kept = depth.saturating_sub(train.recompute_blocks).max(1);
            // Beyond 256 tokens: partial sums of the queries' gradient, f32.
            let parts = match config.tokens().div_ceil(256) {
                1 => 0,
                parts => 4 * parts * c,
            };
            2 * (2 * c * depth + (7 * c + 3 * f) * kept + 11 * c + 3 * f + k) + parts
        }
    };
    bytes as f64
}

fn tokenizer_shapes(config: &Config) -> Result<Shapes> {
    let scope = Scope::plan();
    Tokenizer::new(config, &scope)?;
    Ok(scope.shapes())
}

fn parts(shapes: &Shapes) -> BTreeMap<String, usize> {
    let mut parts = BTreeMap::new();
    for (name, shape) in shapes {
        let part = name.split('.').next().unwrap_or(name);
        *parts.entry(part.to_string()).or_default() += shape.elem_count();
    }
    parts
}

/// Number of elements in all matrices whose names are `wanted`.
fn matrices(shapes: &Shapes, wanted: impl Fn(&str) -> bool) -> f64 {
    shapes
        .iter()
        .filter(|(name, shape)| shape.rank() == 2 && wanted(name))
        .map(|(_, shape)| shape.elem_count() as f64)
        .sum()
}

/// Multiply-adds of all the tokenizer's convolutions and attentions, and values kept for the
/// gradient, per image.
fn convolutions(config: &Config, shapes: &Shapes) -> (f64, f64) {
    let levels = config.tokenizer.ch_mult.len();
    let side = |level: usize| (config.data.image_size / config.tokenizer.patch) >> level;
    let (mut multiplications, mut kept) = (0.0, 0.0);
    for (name, shape) in shapes.iter().filter(|(_, shape)| shape.rank() == 4) {
        let level = level(name, levels);
        let positions = (side(level) * side(level)) as f64;
        multiplications += positions * shape.elem_count() as f64;
        // A convolution keeps its input, and so does the normalization before it; a recomputed
        // residual block keeps its input alone.
        let recomputed = name.contains(".block.") && level < config.train_vae.recompute_levels;
        let maps = match recomputed {
            false => 2.0,
            true if name.ends_with("conv2.weight") => 1.0,
            true => 0.0,
        };
        kept += maps * positions * shape.dims()[0] as f64;
        if name.ends_with("attn_1.q.weight")
            || name.contains(".attn.") && name.ends_with("q.weight")
        {
            multiplications += 2.0 * positions * positions * shape.dims()[0] as f64;
        }
    }
    (multiplications, kept)
}

/// The resolution level of the output of convolution `name`; 0 is the full image.
fn level(name: &str, levels: usize) -> usize {
    let lowest = levels - 1;
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        ["encoder", "conv_in", ..] | ["decoder", "conv_out", ..] => 0,
        [_, "down", i, "downsample", ..] => i.parse().map_or(lowest, |i: usize| i + 1),
        [_, "up", i, "upsample", ..] => i.parse().map_or(0, |i: usize| i.saturating_sub(1)),
        [_, "down" | "up", i, ..] => i.parse().unwrap_or(lowest),
        _ => lowest,
    }
}

/// 1234567 as 1,234,567.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(n: f64) -> String {
    match n {
        n if n < 1e9 => format!("{:.0} MB", n / 1e6),
        n => format!("{:.1} GB", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_takes_six_flop_a_parameter_and_token_and_attention_on_top() -> Result<()> {
        let config = Config::default();
        let estimate = RunEstimate::generator(&config, 1000, true, 1_281_167)?;
        let text = estimate.text();
        assert!(text.contains("133,372,448 parameters"), "{text}");
        // Depth 12: 85 M in attention and SwiGLU (12 blocks of 4C² + 3·2048·C), 3.1 M in the head.
        let tokens = 256.0;
        let matrices = 12.0 * (4.0 * 768.0 * 768.0 + 3.0 * 2048.0 * 768.0) + 768.0 * 4096.0;
        let least = 6.0 * tokens * matrices;
        assert!(
            estimate.flop_per_image > least && estimate.flop_per_image < 1.15 * least,
            "{text}"
        );
        assert!(text.contains("312785 steps, 250.00 epochs"), "{text}");
        Ok(())
    }

    #[test]
    fn blocks_computed_again_keep_their_ends_only() -> Result<()> {
        let mut config = Config::default();
        config.train_gen.compute_type = ComputeType::Bf16;
        let mut bytes = |blocks| {
            config.train_gen.recompute_blocks = blocks;
            activations_per_token(&config)
        };
        // Depth 12: the ends of a block take 4·768 values per token, the activations between them
        // 14·768 + 6·2048.
        assert_eq!(bytes(0) - bytes(5), 5.0 * (14.0 * 768.0 + 6.0 * 2048.0));
        assert_eq!(bytes(11), bytes(12));
        Ok(())
    }

    #[test]
    fn a_convolution_counts_at_the_resolution_it_writes() {
        let levels = 3;
        for (name, expected) in [
            ("encoder.conv_in.weight", 0),
            ("encoder.down.1.block.0.conv1.weight", 1),
            ("encoder.down.1.downsample.conv.weight", 2),
            ("encoder.mid.block_1.conv1.weight", 2),
            ("decoder.up.2.upsample.conv.weight", 1),
            ("decoder.up.0.block.1.conv2.weight", 0),
            ("decoder.conv_out.weight", 0),
            ("quant_conv.weight", 2),
        ] {
            assert_eq!(level(name, levels), expected, "{name}");
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
