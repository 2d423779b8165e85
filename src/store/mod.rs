//! Parameters by name and the files that hold them.

pub mod atomic;
pub mod digest;
pub mod params;
pub mod run;
pub mod safetensors;

pub use params::{Init, Params, Scope};
