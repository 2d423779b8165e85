//! Differentiable operations, one folder each, on maps in [B,H,W,C].
//!
//! In an operation's folder, `mod.rs` says what it computes (formula, shapes, gradient) and checks
//! the shapes; `reference.rs` is the slow reference in plain candle operations; `cpu.rs` is the
//! fast CPU version (rayon, `gemm`, `pulp`); `cuda.rs` and `kernel*.cu` are the GPU version. The
//! public function dispatches: f32 on the CPU, and f32 and bf16 on a GPU, use the fast version if
//! there is one. The reference works everywhere and takes the rest. On a GPU, bf16 activations are
//! combined with f32 weights: an operation rounds its weights itself, and returns their gradients
//! in f32.
//!
//! Rules of the fast versions: a row's result is bit-identical for any number of rows or threads
//! (fixed blocks); sums over rows are computed in chunks that depend on the shape alone, and added
//! in order; gradients are computed only for inputs that the graph tracks.
//!
//! Plain candle is correct and fast enough, and is used directly, for sums and means of losses,
//! `cat`, `narrow`, `reshape`, and `permute` followed by `contiguous`. Where gradients pass,
//! [`arrange`] and [`tape::plain`] record these on the [`Tape`], which training's backward pass
//! walks on the CPU.

pub mod activation;
pub mod adaln;
pub mod add;
pub mod arrange;
pub mod attention;
pub mod batch_norm;
mod blocks;
pub mod bytes;
#[cfg(feature = "cuda")]
pub mod cast;
mod channel_norm;
mod check;
#[cfg(feature = "cuda")]
pub mod code_counts;
#[cfg(any(test, feature = "cuda"))]
#[cfg_attr(
    not(feature = "cuda"),
    allow(
        dead_code,
        reason = "the tests look at what only a GPU's operations remember"
    )
)]
mod column_sums;
pub mod concatenate;
#[cfg(feature = "cuda")]
pub mod condition;
pub mod conv2d;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dropout;
pub mod feature_distance;
pub mod finite;
pub mod flop;
pub mod group_norm;
pub mod hinge;
pub mod layer_norm;
pub mod linear;
pub mod lookup;
pub mod mean_squared_error;
pub mod optimizer;
pub mod pixels;
pub mod pool;
pub mod product;
pub mod quantize;
#[cfg(feature = "cuda")]
pub mod resample;
pub mod running_average;
#[cfg(feature = "cuda")]
pub mod sample;
pub mod scalars;
pub mod silu;
mod simd;
mod slices;
pub mod standardize;
#[cfg(feature = "cuda")]
mod sums;
pub mod swiglu;
pub mod tape;
#[cfg(test)]
mod testing;
pub mod upsample;
mod window;

pub use activation::{Activation, leaky_relu, relu};
pub use adaln::{
    Normed, gate_residual, gated_linear, modulated_linear, modulated_swiglu, rms_norm_modulate,
    rms_norm_projected,
};
pub use add::{add, add_scaled};
pub use arrange::add_to_each;
pub use attention::{RopeKind, RopeTable, attention};
pub use batch_norm::{batch_norm, batch_norm_inference};
pub use blocks::{is_serial, serially};
pub use concatenate::concatenate;
pub use conv2d::{
    FrozenConv2d, HeldWeights, conv2d, conv2d_add, conv2d_packed, conv2d_relu, conv2d_weight_grad,
    upsampled_conv2d,
};
pub use cross_entropy::{CrossEntropy, cross_entropy};
pub use dropout::Dropout;
pub use feature_distance::feature_distance;
pub use group_norm::group_norm;
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_packed, pack_linear};
pub use lookup::lookup;
pub use mean_squared_error::mean_squared_error;
pub use optimizer::{AdamStep, adam_step, adam_step_all, global_norm};
pub use pool::{avg_pool2d, max_pool2d};
#[cfg(feature = "cuda")]
pub use pool::{mean_over_positions, relu_of_average};
pub use product::Packed;
pub use quantize::{
    Codebook, Examples, Noise, Perturbation, Quantized, quantization_loss, quantize_until,
    quantize_until_perturbed, recurrent_quantize,
};
pub use running_average::{Running, update_averages};
pub use scalars::read_scalars;
pub use silu::silu;
pub use simd::largest;
pub use slices::read;
pub use standardize::standardize;
pub use swiglu::{linear_swiglu, swiglu};
pub use tape::{Record, Tape};
pub use upsample::upsample_nearest2x;
pub use window::Padding;
