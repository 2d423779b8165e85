//! `--scale`: how large images are drawn on a sheet.

use crate::sample::Scale;

#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct ScaleArgs {
    /// Draw images N times larger on a sheet, pixel by pixel: 1 is their own size, auto makes small
    /// ones at least 128 pixels wide
    #[arg(long, value_name = "N|auto", default_value_t)]
    pub scale: Scale,
}
