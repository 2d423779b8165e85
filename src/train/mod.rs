//! Training: the loop that both stages share, and the two stages.

pub mod adversary;
#[cfg(feature = "cuda")]
pub mod check;
pub mod checkpoint;
pub mod code_counts;
pub mod dead_codes;
pub mod estimate;
pub mod generator;
#[cfg(feature = "cuda")]
pub mod generator_gpu;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod grads;
pub mod init;
pub mod latents;
pub mod lr;
pub mod optimizer;
pub mod stage;
pub mod start;
pub mod start_generator;
pub mod start_vae;
pub mod step_metrics;
pub mod usage;
pub mod vae;
pub mod validation;
pub mod watchdog;
