//! The images that `encode`, `reconstruct` and `eval-vae` read, and the model they are read for.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;

use super::Context;
use super::config::data_path;
use crate::data::{Batch, Classes, Loader, LoaderOptions, Source, open};
use crate::error::{Error, Result, hinted};
use crate::interrupt::Interrupt;
use crate::ops::finite;
use crate::sample::{Pretrained, not_finite};
use crate::telemetry::Progress;
use crate::world::Share;

#[derive(Debug, Clone, clap::Args)]
pub struct ImageArgs {
    /// Images, folders of images, tar shards or globs; each image is center-cropped and resized to
    /// the model's size
    #[arg(value_name = "IMAGES", required = true, value_parser = data_path())]
    images: Vec<String>,
    /// A run folder of either stage, a bundle, a folder of `export --hf`,
    /// hf://owner/repo[@revision], or `builtin`, the built-in model [default: $RDPM_MODEL, else the
    /// newest finished train-gen run under runs/, else builtin]
    #[arg(long, value_name = "RUN|BUNDLE")]
    model: Option<PathBuf>,
    /// Seed of the noise; each image's noise also depends on its number
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Images per batch; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Skip images that cannot be read instead of stopping
    #[arg(long)]
    pub skip_bad_images: bool,
}

/// The inputs that [`ImageArgs`] name, opened.
pub struct Inputs {
    pub model: Pretrained,
    pub source: Arc<dyn Source>,
    loader: LoaderOptions,
}

impl ImageArgs {
    pub fn open(&self, context: &Context) -> Result<Inputs> {
        // Images first: a mistyped path is found before the model is loaded.
        let source = open(&self.images, self.skip_bad_images)?;
        Ok(Inputs {
            model: Pretrained::open(self.model.as_deref(), &context.device()?)?,
            source,
            loader: LoaderOptions {
                batch_size: self.batch_size as usize,
                workers: context.threads,
                skip_bad: self.skip_bad_images,
            },
        })
    }
}

impl Inputs {
    /// Warns if labels are doubtful, for commands that write them.
    pub fn warn_of_labels(&self) {
        self.source.warn_of_doubts();
        let (data, model) = (self.source.classes(), &self.model.classes);
        let unknown = data.iter().find(|c| model.index_of(&c.wnid).is_none());
        if let Some(class) = unknown.filter(|_| !model.is_empty()) {
            tracing::warn!(
                "the model does not know class \"{}\": labels are the data's own numbers, not the model's",
                class.wnid
            );
        }
    }

    /// Calls `work` with every batch: its images on the model's device, and its labels in the
    /// model's numbering. If the model does not know all of the data's classes, labels keep the
    /// data's numbering.
    ///
    /// Returns the number of images read and the number skipped.
    ///
    /// Errors: any error of `work`; a signal that asks to stop; no image could be read.
    pub fn each(
        &self,
        what: &str,
        work: impl FnMut(Batch) -> Result<()>,
    ) -> Result<(usize, usize)> {
        let all = 0..self.source.len();
        let kept = "nothing was written; the same command starts from scratch";
        let mut pass = self.pass(what, all.len(), 0, kept)?;
        pass.over(all, work)?;
        match pass.count {
            0 => Err(no_image()),
            count => Ok((count, pass.skipped)),
        }
    }

    /// A pass over `total` images in pieces, `done` of which were done before; `kept` says what an
    /// interrupted one leaves.
    pub fn pass(
        &self,
        what: &str,
        total: usize,
        done: usize,
        kept: &'static str,
    ) -> Result<Pass<'_>> {
        Ok(Pass {
            inputs: self,
            numbering: numbering(self.source.classes(), &self.model.classes),
            progress: Progress::new(what, total as u64, done as u64),
            interrupt: Interrupt::listen()?,
            kept,
            done,
            total,
            count: 0,
            skipped: 0,
        })
    }

    /// How many images are in a batch, the last but one included.
    pub fn batch_size(&self) -> usize {
        self.loader.batch_size
    }

    /// How many batches the images are in: batch i is of those that follow the first i · B.
    pub fn batches(&self) -> usize {
        self.source.len().div_ceil(self.batch_size())
    }

    /// The numbers of the images in a batch.
    pub fn numbers(&self, batch: usize) -> Range<usize> {
        let first = batch * self.batch_size();
        first..(first + self.batch_size()).min(self.source.len())
    }

    /// The batches of `share`, on the model's device; labels keep the data's numbering.
    pub fn dealt(&self, share: Share) -> Result<Dealt> {
        let (source, size) = (self.source.clone(), self.model.config.data.image_size);
        let loader = Loader::ordered_share(source, &self.loader, size, share)?;
        Ok(Dealt {
            loader: loader.on(&self.model.device),
            next: None,
            batch_size: self.batch_size(),
        })
    }

    /// The classes that labels of this pass number: the model's if it knows all of the data's.
    pub fn classes(&self) -> &Classes {
        let (data, model) = (self.source.classes(), &self.model.classes);
        match numbering(data, model) {
            Some(_) => model,
            None => data,
        }
    }

    /// The name of image number `number` in errors.
    pub fn name(&self, number: u64) -> String {
        let key = self.source.read(number as usize).map(|image| image.key);
        key.map_or_else(
            |_| format!("image {number}"),
            |key| format!("image `{key}`"),
        )
    }

    /// Refuses `values` [B,…] of `batch` if those of an image contain NaN or infinity; `what` names
    /// them.
    pub fn check_finite(&self, values: &Tensor, batch: &Batch, what: &str) -> Result<()> {
        match finite::first_bad_row(values)? {
            Some(row) => Err(not_finite(&self.name(batch.indices[row]), what)),
            None => Ok(()),
        }
    }
}

/// The batches of one of several processes: see [`Inputs::dealt`].
pub struct Dealt {
    loader: Loader,
    /// Read already, and not asked for yet.
    next: Option<Batch>,
    batch_size: usize,
}

impl Dealt {
    /// Batch `number`, one of its share, after all before it; none if none of its images could be
    /// read.
    pub fn batch(&mut self, number: usize) -> Result<Option<Batch>> {
        if self.next.is_none() {
            self.next = self.loader.next().transpose()?;
        }
        let first = |batch: &Batch| batch.indices.first().copied().unwrap_or_default();
        let is_it = |batch: &mut Batch| first(batch) / self.batch_size as u64 == number as u64;
        Ok(self.next.take_if(is_it))
    }
}

/// See [`Inputs::pass`].
pub struct Pass<'a> {
    inputs: &'a Inputs,
    numbering: Option<Vec<u32>>,
    progress: Progress,
    interrupt: Interrupt,
    kept: &'static str,
    done: usize,
    total: usize,
    /// Images read.
    pub count: usize,
    /// Images that could not be read.
    pub skipped: usize,
}

impl Pass<'_> {
    /// As [`Inputs::each`], over the images at `range` in the source.
    pub fn over(
        &mut self,
        range: Range<usize>,
        mut work: impl FnMut(Batch) -> Result<()>,
    ) -> Result<()> {
        let inputs = self.inputs;
        let size = inputs.model.config.data.image_size;
        let source = inputs.source.clone();
        let loader = Loader::ordered_part(source, &inputs.loader, size, false, range)?;
        let mut loader = loader.on(&inputs.model.device);
        for batch in loader.by_ref() {
            self.interrupt.check(
                || format!("after {} of {} images", self.done, self.total),
                || self.kept.to_string(),
            )?;
            let mut batch = batch?;
            let count = batch.labels.len();
            if let Some(numbering) = &self.numbering {
                let labels = batch.labels.iter_mut();
                labels.for_each(|l| *l = numbering[*l as usize]);
            }
            work(batch)?;
            self.count += count;
            self.done += count;
            self.progress.set(self.done as u64, "");
        }
        self.skipped += loader.skipped();
        self.done += loader.skipped();
        Ok(())
    }
}

/// The error of images none of which could be read.
pub fn no_image() -> Error {
    hinted(
        "no image could be read",
        "the warnings above say why; name other images",
    )
}

/// The model's index of each of the data's classes, if the model knows them all, so that a folder
/// with few of the classes keeps their indices.
///
/// Data without classes has nothing to renumber.
fn numbering(data: &Classes, model: &Classes) -> Option<Vec<u32>> {
    if data.is_empty() {
        return None;
    }
    data.iter()
        .map(|class| model.index_of(&class.wnid))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_classes_keep_the_models_numbers() {
        let model = Classes::named(["a", "b", "c"]);
        assert_eq!(
            numbering(&Classes::named(["c", "a"]), &model),
            Some(vec![2, 0])
        );
        assert_eq!(numbering(&Classes::named(["a", "z"]), &model), None);
        assert_eq!(numbering(&Classes::named([""; 0]), &model), None);
    }
}
