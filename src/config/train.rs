//! `[train_vae]` and `[train_gen]`: settings that both stages have; their defaults differ.

use candle_core::DType;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    Constant,
    /// Half a cosine, down to `lr_min`.
    Cosine,
    /// Warm-up, stable, decay: linear to `lr_min` over the last `lr_decay` of the run [ours].
    Wsd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeType {
    F32,
    Bf16,
}

impl ComputeType {
    /// The dtype of the tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Settings that both stages have; their defaults differ (`TrainConfig::vae`,
/// `TrainConfig::generator`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Images per step, over all micro-batches.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub accumulate: usize,
    pub lr: f64,
    pub lr_schedule: LrSchedule,
    /// Share of the run over which "wsd" falls.
    pub lr_decay: f64,
    /// Share of `lr` at which "cosine" and "wsd" end.
    pub lr_min: f64,
    pub warmup_steps: u64,
    pub betas: (f64, f64),
    pub weight_decay: f64,
    /// Maximum norm of the global gradient; 0 disables clipping.
    pub clip: f64,
    pub ema_decay: f64,
    /// Total steps; takes precedence over `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    pub compute_type: ComputeType,
    /// Recompute the activations of the generator's first blocks in the backward pass instead of
    /// keeping them.
    pub recompute_blocks: usize,
    /// Recompute what is inside the residual blocks of the tokenizer's largest resolutions, this
    /// many, in the backward pass instead of keeping it.
    pub recompute_levels: usize,
    pub log_every: u64,
    pub image_every: u64,
    pub checkpoint_every: u64,
    /// Also save a checkpoint this many minutes after the last one; 0 never does.
    pub checkpoint_minutes: f64,
    /// Number of newest checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Consecutive steps skipped for a non-finite loss or gradient before the run stops.
    pub max_bad_steps: u64,
}

impl TrainConfig {
    /// Total steps of the run for a training set of `examples` images: `steps`, else computed from
    /// `epochs`.
    pub fn total_steps(&self, examples: u64) -> u64 {
        self.steps.unwrap_or_else(|| {
            let images = self.epochs.unwrap_or(1.0) * examples as f64;
            (images / self.batch_size as f64).ceil().max(1.0) as u64
        })
    }

    /// Images per micro-batch.
    pub fn micro_batch(&self) -> usize {
        self.batch_size / self.accumulate
    }

    /// The paper's tokenizer run; the warm-up is half an epoch of ImageNet.
    pub fn vae() -> Self {
        Self {
            batch_size: 128,
            accumulate: 1,
            lr: 4e-5,
            lr_schedule: LrSchedule::Constant,
            lr_decay: 0.3,
            lr_min: 0.0,
            warmup_steps: 5_004,
            betas: (0.5, 0.9),
            weight_decay: 0.0,
            clip: 0.0,
            ema_decay: 0.9999,
            steps: None,
            epochs: Some(10.0),
            compute_type: ComputeType::F32,
            recompute_blocks: 0,
            recompute_levels: 0,
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
