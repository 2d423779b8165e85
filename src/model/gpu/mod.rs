//! The generator's training step on a GPU, by hand: the same mathematics as [`super::generator`], over kernels and preallocated buffers.
//!
//! Candle's graph is left out: a block's backward pass needs several outputs an operation, buffers that are reused, and gradients that land in
//! one flat buffer. bf16 data, f32 sums, f32 parameters with a bf16 copy. What is computed is checked against the CPU path in [`check`].

mod activations;
mod backward;
pub mod check;
pub mod check_quantizer;
mod flat;
mod forward;
pub mod kernels;

pub use activations::{Activations, Conditions, Scratch, Sets, Trunk};
pub use flat::Flat;
pub use forward::Network;
pub use kernels::Sizes;
