//! Typed configuration: one validated value, saved beside the weights. Defaults are the paper's run.

use serde::{Deserialize, Serialize};

/// Everything that decides what a run computes. Seed, threads and device belong to the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub data: DataConfig,
    pub tokenizer: TokenizerConfig,
    pub quantizer: QuantizerConfig,
    pub schedule: ScheduleConfig,
    pub loss: LossConfig,
    pub generator: GeneratorConfig,
    pub train_vae: TrainConfig,
    pub train_gen: TrainConfig,
    pub sample: SampleConfig,
}

/// How a training image is cut to `image_size`. Validation and train-gen use ADM's centre crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// Shorter side to `image_size`, then a random square.
    Random,
    /// A random area (0.08..1) and aspect (3/4..4/3), resized.
    RandomResized,
    /// ADM's centre crop.
    Center,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folders, tar shards or globs of them.
    pub train: Vec<String>,
    pub val: Vec<String>,
    /// Height and width of the square images.
    pub image_size: usize,
    pub crop: Crop,
    pub flip: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Base width.
    pub ch: usize,
    /// Width of each level as a multiple of `ch`; every level but the last halves the resolution.
    pub ch_mult: Vec<usize>,
    /// Residual blocks a level in the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Latent channels d.
    pub embed_dim: usize,
    pub norm_groups: usize,
    /// Space-to-depth factor before the encoder [ours]; 1 is the paper's.
    pub patch: usize,
}

/// How L_quant adds up over the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Divided by the sum of the weights ("weighted average") [ours].
    Mean,
    /// Eq. 4 as printed.
    Sum,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizerConfig {
    /// Codes K.
    pub codebook_size: usize,
    /// Steps T.
    pub steps: usize,
    /// v' = e + conv3×3(e).
    pub bias: bool,
    /// γ_t = α_t; 1 without.
    pub weight: bool,
    pub reduction: Reduction,
    /// δ of the commitment term.
    pub commitment: f64,
    /// Codes hardly chosen take a noisy vector's value, every `restart_every` steps in the first 80 % of training [ours].
    pub restart_dead_codes: bool,
    pub restart_every: u64,
    /// Standard deviation of fresh codes.
    pub init_std: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// φ^(T−t)
    Pow,
    /// t / T
    Linear,
    /// sin(π/2 · t/T)
    Sin,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    pub kind: ScheduleKind,
    pub phi: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Perceptual {
    /// LPIPS on VGG16.
    Lpips,
    None,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of L_quant [ours]; 1 is the paper's.
    pub quant_weight: f64,
    pub perceptual: Perceptual,
    pub perceptual_weight: f64,
    /// torchvision's VGG16 (.pth or .safetensors); the command line's --vgg.
    pub vgg: Option<String>,
    /// The LPIPS heads; the command line's --lpips.
    pub lpips: Option<String>,
    /// η of the adversarial term; 0 trains without a discriminator.
    pub disc_weight: f64,
    /// The discriminator is not run before this step.
    pub disc_start: u64,
    /// Steps over which its weight rises from 0 [ours].
    pub disc_ramp: u64,
    pub disc_lr: f64,
    /// Strided layers of the PatchGAN.
    pub disc_layers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadInit {
    Zero,
    /// Started from the codebook [ours].
    Codebook,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rope {
    /// Over the raster index.
    #[serde(rename = "1d")]
    OneD,
    /// Half of a head by row, half by column [ours].
    #[serde(rename = "2d")]
    TwoD,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorConfig {
    pub depth: usize,
    /// Width C; 64·depth where it is left out.
    pub width: Option<usize>,
    /// Attention heads; `depth` where it is left out.
    pub heads: Option<usize>,
    /// Width after mixing noise and sum; `embed_dim` (the paper's) where it is left out.
    pub mix_dim: Option<usize>,
    pub head_init: HeadInit,
    /// s of the codebook head.
    pub head_scale: f64,
    /// Standard deviation of a learned position [ours]; 0 has none.
    pub pos_embed: f64,
    pub rope: Rope,
    pub rope_base: f64,
    /// Standard deviations of fresh label embeddings and of the time MLP.
    pub label_std: f64,
    pub time_std: f64,
    pub label_dropout: f64,
    /// Classes; found from the data where it is left out.
    pub classes: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    Constant,
    /// Half a cosine to 0.
    Cosine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeType {
    F32,
    Bf16,
}

/// What both stages share; their defaults differ (`TrainConfig::vae`, `TrainConfig::gen`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Images a step, over all micro-batches.
    pub batch_size: usize,
    /// Micro-batches a step.
    pub accumulate: usize,
    pub lr: f64,
    pub lr_schedule: LrSchedule,
    pub warmup_steps: u64,
    pub betas: (f64, f64),
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 does not clip.
    pub clip: f64,
    pub ema_decay: f64,
    /// Steps; wins over `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    pub compute_type: ComputeType,
    pub log_every: u64,
    pub image_every: u64,
    pub checkpoint_every: u64,
    /// A checkpoint too when this many minutes have passed since the last; 0 never.
    pub checkpoint_minutes: f64,
    /// Newest checkpoints kept.
    pub keep_checkpoints: usize,
    /// Steps skipped in a row for a non-finite loss or gradient before the run stops.
    pub max_bad_steps: u64,
}

/// Sampling defaults; every one has its flag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// The paper's λ: 0 is off; DiT's and LlamaGen's scale is 1 + λ.
    pub cfg: f64,
    pub cfg_schedule: CfgSchedule,
    pub temperature: f64,
    pub gumbel: bool,
    pub batch_size: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CfgSchedule {
    Constant,
    /// λ(t−1)/(T−1)
    Linear,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: DataConfig::default(),
            tokenizer: TokenizerConfig::default(),
            quantizer: QuantizerConfig::default(),
            schedule: ScheduleConfig::default(),
            loss: LossConfig::default(),
            generator: GeneratorConfig::default(),
            train_vae: TrainConfig::vae(),
            train_gen: TrainConfig::generator(),
            sample: SampleConfig::default(),
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            val: Vec::new(),
            image_size: 256,
            crop: Crop::Random,
            flip: true,
        }
    }
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            ch: 128,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            embed_dim: 32,
            norm_groups: 32,
            patch: 1,
        }
    }
}

impl Default for QuantizerConfig {
    fn default() -> Self {
        Self {
            codebook_size: 4096,
            steps: 10,
            bias: true,
            weight: true,
            reduction: Reduction::Mean,
            commitment: 0.25,
            restart_dead_codes: true,
            restart_every: 100,
            init_std: 0.5,
        }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Pow,
            phi: 0.75,
        }
    }
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            quant_weight: 1.0,
            perceptual: Perceptual::Lpips,
            perceptual_weight: 1.0,
            vgg: None,
            lpips: None,
            disc_weight: 0.75,
            disc_start: 20_000,
            disc_ramp: 2_000,
            disc_lr: 4e-5,
            disc_layers: 3,
        }
    }
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            depth: 12,
            width: None,
            heads: None,
            mix_dim: None,
            head_init: HeadInit::Zero,
            head_scale: 4.0,
            pos_embed: 0.0,
            rope: Rope::OneD,
            rope_base: 10_000.0,
            label_std: 0.02,
            time_std: 0.02,
            label_dropout: 0.1,
            classes: None,
        }
    }
}

impl TrainConfig {
    /// The paper's tokenizer run; the warm-up is half an epoch of ImageNet.
    pub fn vae() -> Self {
        Self {
            batch_size: 128,
            accumulate: 1,
            lr: 4e-5,
            lr_schedule: LrSchedule::Constant,
            warmup_steps: 5_004,
            betas: (0.5, 0.9),
            weight_decay: 0.0,
            clip: 0.0,
            ema_decay: 0.9999,
            steps: None,
            epochs: Some(10.0),
            compute_type: ComputeType::F32,
            log_every: 50,
            image_every: 1_000,
            checkpoint_every: 1_000,
            checkpoint_minutes: 30.0,
            keep_checkpoints: 2,
            max_bad_steps: 10,
        }
    }

    /// The paper's generator run; 250 epochs [ours].
    pub fn generator() -> Self {
        Self {
            batch_size: 1024,
            lr: 4e-4,
            warmup_steps: 1_000,
            betas: (0.9, 0.95),
            weight_decay: 0.03,
            clip: 1.0,
            epochs: Some(250.0),
            ..Self::vae()
        }
    }
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            cfg: 4.0,
            cfg_schedule: CfgSchedule::Linear,
            temperature: 1.0,
            gumbel: true,
            batch_size: 16,
        }
    }
}
