//! NumPy's `.npz`: a zip of `.npy` arrays, read and written as a stream.

mod header;
mod reader;
mod writer;

pub use header::Element;
pub use reader::{Array, Npz};
pub use writer::NpzWriter;
