//! Algorithm 2 and what its images are written to.

pub mod grid;
pub mod image;

pub use grid::{enlarge, grid, save_png};
pub use image::to_rgb;
