//! Golden tests: the model must compute what the PyTorch reference computed (`scripts/golden.py`).
//!
//! Tolerance: relative error ‖Δ‖/‖ref‖ ≤ 1e-5 in f32; codes are equal (the files hold no near
//! ties).

mod discriminator;
mod features;
mod fixture;
mod frozen;
mod generator;
mod perceptual;
mod pictures;
mod quantizer;
mod ranks;
mod sampler;
mod similarity;
mod tokenizer;
mod trajectory;
