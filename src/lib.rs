//! The Recurrent Diffusion Probabilistic Model (arXiv 2412.18390) in Rust: training, sampling and evaluation.
//!
//! An image becomes T maps of codes by noisy residual quantization (the *tokenizer*); a transformer predicts
//! the map of step t from that step's noise and what has been accumulated so far (the *generator*).
//!
//! Layers, each importing only from its own layer or from those to its right:
//! `cli` → `train`, `sample`, `metrics` → `model`, `data` → `ops`, `store`, `rng`, `config`, `telemetry`, `error`.
//! The paper is in [`model`], the machine in [`ops`].
//!
//! In memory every map is [B,H,W,C] (a position is a row); files hold PyTorch's layouts.

pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod rng;
pub mod sample;
pub mod store;
pub mod telemetry;
pub mod train;
