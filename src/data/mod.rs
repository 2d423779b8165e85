//! Images: sources, decoding, augmentation, the prefetching loader, the latent cache.
//!
//! [`source::open`] turns paths into a [`Source`] of labelled images, a [`Loader`] turns a source
//! into batches [B,H,W,3] in [-1,1]; [`pack`] writes a source at the training size; [`shapes`]
//! draws the demo's source. What an example looks like depends on the run's seed and on its running
//! number alone, never on workers, batch size or the point of resumption.

pub mod augment;
mod class_spec;
pub mod classes;
mod decode;
mod folder;
mod found;
mod image_kind;
mod index;
mod jpeg;
mod labelling;
mod labels;
pub mod latent_cache;
pub mod latent_loader;
pub mod loader;
mod members;
mod numbering;
pub mod pack;
mod part;
mod paths;
mod plausible;
pub mod resize;
mod selection;
pub mod shapes;
mod shards;
mod small_pages;
pub mod source;
mod stamp;
mod transient;

pub use augment::Augment;
pub use classes::{Class, Classes};
pub use decode::{Limits, decode_within};
pub(crate) use decode::{decode, decode_uncaught};
pub(crate) use index::read_index;
pub use latent_cache::{CacheMeta, LatentCache};
pub use loader::{Batch, Loader, LoaderOptions, Order};
pub use paths::printed;
pub(crate) use source::read_shard;
pub use source::{Example, Kept, Source, keep_index, open, open_numbered};

#[cfg(test)]
mod tests;
