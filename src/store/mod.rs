//! Parameters by name and the files that hold them.

pub mod atomic;
pub mod bundle;
pub mod codes;
pub mod digest;
pub mod model;
pub mod params;
pub mod run;
pub mod safetensors;

pub use params::{Init, Params, Scope};
