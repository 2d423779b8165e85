//! Algorithm 2 and the files that images are written to.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
pub mod check_decode;
pub mod choose;
pub mod decode;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod grid;
pub mod image;
pub mod options;
pub mod output;
pub mod pretrained;
pub mod sampler;
pub mod steps;

pub use choose::{Choice, choose};
pub use decode::LatentDecoder;
pub use grid::{Scale, grid, png, save_png};
pub use image::{from_rgb, named_rgb, not_finite, to_rgb};
pub use options::{Impossible, SampleOptions, Wishes};
pub use output::{Output, Picture, Pictures, Put};
pub use pretrained::Pretrained;
pub use sampler::{Draws, Sampler, decode};
pub use steps::{Sample, Steps};
