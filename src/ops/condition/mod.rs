//! What surrounds the generator's blocks on a GPU: joined inputs, time features, the condition's
//! MLP, positions, dropout, sums over rows, and the tally of losses per step (`kernel.cu`).
//!
//! Their references are candle operations on the CPU ([`check`]); the network that uses them is
//! [`model::generator::fused`](crate::model::generator::fused).

pub mod check;
mod cuda;

pub use cuda::{
    DropoutOnGpu, TIME_FEATURES, add_position, condition, dropout, embedding_gradient, join_inputs,
    row_sums, row_sums_scratch, silu, silu_gradient, tally, time_features,
};
