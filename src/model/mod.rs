//! The paper's model: tokenizer, losses, generator, in the order of its sections.
//!
//! Parameters have PyTorch's names (taming-transformers' for the tokenizer, DiT's and LLaMA's for
//! the generator).

mod blocks;
mod decoder;
pub mod discriminator;
mod encoder;
pub mod generator;
mod layers;
pub mod losses;
pub mod perceptual;
mod pseudo_inverse;
mod quantizer;
pub mod tokenizer;
pub mod upsample;

pub use discriminator::Discriminator;
pub use generator::Generator;
pub use perceptual::Lpips;
pub use quantizer::Quantizer;
pub use tokenizer::{Tokenizer, straight_through};
