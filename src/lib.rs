//! The Recurrent Diffusion Probabilistic Model (arXiv 2412.18390) in Rust: training, sampling and
//! evaluation.
//!
//! The *tokenizer* turns an image into T maps of codes by noisy residual quantization. The
//! *generator*, a transformer, predicts the map of step t from that step's noise and the sum of the
//! maps so far.
//!
//! Layers, from the top; a module imports only from its own layer and from layers below it:
//!
//! ```text
//! cli, hostile
//! serve
//! metrics, train
//! sample
//! model, data
//! ops, store, rng, telemetry
//! world
//! config, interrupt
//! error
//! ```
//!
//! The paper is in [`model`], the numerical code in [`ops`].
//!
//! In memory every map is [B,H,W,C] (one row per position); files use PyTorch's layouts.

pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod gpu_error;
#[doc(hidden)]
pub mod hostile;
pub mod interrupt;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod rng;
pub mod sample;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod train;
pub mod world;
