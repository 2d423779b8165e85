//! Parameters by name and the files that hold them.

pub mod params;

pub use params::{Init, Params, Scope};
