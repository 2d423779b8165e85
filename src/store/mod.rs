//! Parameters by name and the files that hold them.

pub mod atomic;
pub mod builtin;
pub mod bundle;
pub mod codes;
pub mod digest;
pub mod download;
pub mod elements;
pub mod foreign;
pub mod hub;
pub mod int8;
pub mod lock;
pub mod model;
pub mod names;
pub mod npz;
pub mod params;
mod pth;
pub mod run;
pub mod safetensors;
pub mod tensors;

pub use params::{Init, Params, Scope};
