//! Sums over the rows of [R,C], in f32 and in a fixed order: what a bias's gradient is. They are
//! computed once for each gradient, and not at all if the pass that wrote it left them ([`known`]).

#[cfg(feature = "cuda")]
mod cuda;
pub(super) mod known;

#[cfg(feature = "cuda")]
pub use cuda::column_sums;
