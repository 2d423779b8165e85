//! `--scale`: the size of images on a sheet.

use crate::sample::Scale;

#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct ScaleArgs {
    /// Enlarge images on a sheet N times by repeating pixels; 1 keeps their size, auto makes small
    /// ones at least 128 pixels wide
    #[arg(long, value_name = "N|auto", default_value_t)]
    pub scale: Scale,
}
