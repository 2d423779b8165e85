//! The model that is built into the program: a bundle in the binary, which is read where it lies.
//!
//! It is there with the feature `builtin-model`, if [`FILE`] was there at build time (build.rs sets
//! `builtin_model`). A published crate is too small for it.

use crate::error::Result;
#[cfg(not(builtin_model))]
use crate::error::hinted;

/// What --model calls it. A file or folder of this name is `./builtin`.
pub const NAME: &str = "builtin";

/// The bundle, from the repository's root.
pub const FILE: &str = "models/tiny-imagenet-64.safetensors";

/// Whether this program has one.
pub const EXISTS: bool = cfg!(builtin_model);

/// A static is in the program once; a constant was there once in each unit of code that called
/// [`bytes`].
#[cfg(builtin_model)]
static MODEL: [u8; include_bytes!("../../models/tiny-imagenet-64.safetensors").len()] =
    *include_bytes!("../../models/tiny-imagenet-64.safetensors");

/// Errors: this program was built without one; the hint says how to build it in.
#[cfg(builtin_model)]
pub fn bytes() -> Result<&'static [u8]> {
    Ok(&MODEL)
}

/// Errors: this program was built without one; the hint says how to build it in.
#[cfg(not(builtin_model))]
pub fn bytes() -> Result<&'static [u8]> {
    Err(hinted("this rdpm was built without a model", how()))
}

/// How to get a program with a built-in model.
#[cfg(not(builtin_model))]
pub fn how() -> String {
    match cfg!(feature = "builtin-model") {
        true => format!(
            "build rdpm in a clone of its repository, which has {FILE}; a published crate has not"
        ),
        false => "build rdpm with the feature builtin-model, one of the default features".into(),
    }
}
