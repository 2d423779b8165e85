//! NumPy's `.npy` arrays, and `.npz`: a zip of them, read and written as a stream.

mod header;
mod npy;
mod reader;
mod writer;

pub use header::Element;
pub use npy::{Npy, npy_header};
pub use reader::{Array, Npz};
pub use writer::NpzWriter;
