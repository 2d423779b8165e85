//! The paper's model: schedule, tokenizer, losses, generator, in the order of its sections.
//!
//! Parameters have PyTorch's names (taming-transformers' for the tokenizer, DiT's and LLaMA's for
//! the generator).

mod blocks;
mod decoder;
pub mod discriminator;
pub mod dropout;
mod encoder;
pub mod generator;
#[cfg(feature = "cuda")]
pub mod gpu;
mod layers;
pub mod losses;
pub mod perceptual;
mod pseudo_inverse;
mod quantizer;
pub mod schedule;
pub mod tokenizer;
pub mod upsample;

pub use discriminator::Discriminator;
pub use generator::Generator;
pub use perceptual::Lpips;
pub use quantizer::Quantizer;
pub use tokenizer::{Tokenizer, straight_through};
