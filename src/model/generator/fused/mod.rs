//! The generator's training step on a GPU, fused by hand: the mathematics of
//! [`Generator`](super::Generator) as a sequence of kernels over preallocated buffers.
//!
//! This is a second description of the network, and the only one in the program. Its reason: a
//! block's backward pass has several outputs per operation, reuses buffers, and writes gradients
//! into one flat buffer that a single optimizer kernel reads; candle's graph offers none of these
//! (depth 12 at 256 images of 256 tokens on an H200: 72.6 ms per step, compiled PyTorch 97.6). bf16
//! data, f32 sums, f32 parameters with a bf16 copy. The results are compared with the CPU's in
//! [`check`].

mod activations;
mod backward;
pub mod check;
mod flat;
mod forward;
mod sizes;

pub use activations::{Activations, Conditions, Scratch, Sets, TrainingDropout, Trunk};
pub use flat::Flat;
pub use forward::Network;
pub use sizes::Sizes;

const _: () = assert!(crate::ops::condition::TIME_FEATURES == super::TIME_FEATURES);
