//! Batches [B,H,W,3] in [-1,1] from a source, read, decoded and cut by threads of its own ahead of
//! their use.
//!
//! Examples are numbered through all epochs: number n is place n mod len of epoch n div len, whose
//! order is a permutation drawn from (seed, epoch). Of W workers each makes every W-th example and
//! hands it on through a bounded queue of its own; one more thread takes them in turn, as bytes.
//! The thread that asks for a batch makes numbers of it, on the GPU if the loader is for one. So
//! batches, and the first error, are the same whatever the number of workers, and a run continues
//! at any number without reading what came before.

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};
use image::RgbImage;
use tracing::debug_span;

use super::augment::{Augment, center_crop};
use super::source::{DataChanged, Example, Source};
use crate::config::Crop;
use crate::error::{Context, Result, hinted};
use crate::ops::pixels::{Bytes, Pixels};
use crate::rng::{Purpose, Stream};
use crate::world::Share;

/// Batches ready beyond the one in use.
const READY_BATCHES: usize = 2;

/// Examples each worker may be ahead.
const AHEAD: usize = 16;

/// What goes into one step.
#[derive(Debug)]
pub struct Batch {
    /// [B,H,W,3] in [-1,1], on the loader's device.
    pub images: Tensor,
    /// 0 where the source has no classes.
    pub labels: Vec<u32>,
    /// The examples' running numbers; in an ordered pass, their places in the source.
    pub indices: Vec<u64>,
    /// Their names in the source, without ending.
    pub names: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
pub struct LoaderOptions {
    pub batch_size: usize,
    /// Threads that read, decode and cut.
    pub workers: usize,
    /// An image that cannot be decoded is reported and left out instead of an error.
    pub skip_bad: bool,
}

/// The order of examples: dependent on the seed and the epoch only.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    len: usize,
    /// Permutations of the two epochs last used: workers are not all in the same.
    epochs: Mutex<Vec<(u64, Arc<[u32]>)>>,
}

impl Order {
    pub fn new(seed: u64, len: usize) -> Self {
        let epochs = Mutex::new(Vec::new());
        Self { seed, len, epochs }
    }

    /// The place in the source of example number `n`.
    pub fn place(&self, n: u64) -> usize {
        let (epoch, at) = (n / self.len as u64, n % self.len as u64);
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = epochs
            .iter()
            .find(|(e, _)| *e == epoch)
            .map(|(_, p)| p.clone());
        let permutation = known.unwrap_or_else(|| {
            let drawn = permutation(self.seed, epoch, self.len);
            if epochs.len() == 2 {
                epochs.remove(0);
            }
            epochs.push((epoch, drawn.clone()));
            drawn
        });
        permutation[at as usize] as usize
    }
}

fn permutation(seed: u64, epoch: u64, len: usize) -> Arc<[u32]> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    let mut draws = Stream::new(seed, Purpose::Shuffle, epoch, 0).draws();
    draws.shuffle(&mut order);
    order.into()
}

/// An iterator over batches; dropping it ends its threads and says how many images were left out.
pub struct Loader {
    batches: Option<Receiver<Result<Vec<Prepared>>>>,
    pixels: Pixels,
    threads: Vec<JoinHandle<()>>,
    skipped: Arc<Mutex<BTreeSet<usize>>>,
    made: Arc<AtomicU64>,
    /// Images of the source.
    total: usize,
}

/// What decides an example, shared by the workers.
struct Plan {
    source: Arc<dyn Source>,
    kind: Kind,
    skip_bad: bool,
    skipped: Arc<Mutex<BTreeSet<usize>>>,
    made: Arc<AtomicU64>,
}

enum Kind {
    Shuffled {
        augment: Augment,
        seed: u64,
        order: Order,
    },
    Ordered {
        size: usize,
        mirror: bool,
    },
    Spread {
        size: usize,
        count: u64,
    },
}

/// An example ready for its batch.
struct Prepared {
    number: u64,
    image: RgbImage,
    mirrored: bool,
    label: u32,
    name: String,
}

/// None where an example was left out.
type Made = Result<Option<Prepared>>;

impl Loader {
    /// Training: batches without end from example number `start` on, in the order of `seed`.
    ///
    /// With `skip_bad` the place of a bad image is taken by the next whole one of the source.
    pub fn shuffled(
        source: Arc<dyn Source>,
        options: &LoaderOptions,
        augment: Augment,
        seed: u64,
        start: u64,
    ) -> Result<Self> {
        Self::shared(source, options, augment, seed, start, Share::WHOLE)
    }

    /// As [`Loader::shuffled`], of several processes that divide its batches: those of `share`.
    pub fn shared(
        source: Arc<dyn Source>,
        options: &LoaderOptions,
        augment: Augment,
        seed: u64,
        start: u64,
        share: Share,
    ) -> Result<Self> {
        let order = Order::new(seed, source.len());
        let kind = Kind::Shuffled {
            augment,
            seed,
            order,
        };
        Self::start(source, options, kind, start..u64::MAX, share)
    }

    /// One pass over the source in its order, with ADM's centre crop to `size`; the last batch may
    /// be smaller.
    ///
    /// `mirror` flips every image. With `skip_bad` bad images are missing from the batches, which
    /// are the smaller for it; a batch of bad images alone is missing too.
    pub fn ordered(
        source: Arc<dyn Source>,
        options: &LoaderOptions,
        size: usize,
        mirror: bool,
    ) -> Result<Self> {
        let range = 0..source.len();
        Self::ordered_part(source, options, size, mirror, range)
    }

    /// As [`Loader::ordered`], of several processes that divide its batches: those of `share`.
    pub fn ordered_share(
        source: Arc<dyn Source>,
        options: &LoaderOptions,
        size: usize,
        share: Share,
    ) -> Result<Self> {
        let count = share.examples_of(source.len() as u64, options.batch_size.max(1));
        let kind = Kind::Ordered {
            size,
            mirror: false,
        };
        Self::start(source, options, kind, 0..count, share)
    }

    /// The same over the images at `range` in the source.
    pub fn ordered_part(
        source: Arc<dyn Source>,
        options: &LoaderOptions,
        size: usize,
        mirror: bool,
        range: Range<usize>,
    ) -> Result<Self> {
        let range = range.start as u64..range.end as u64;
        let kind = Kind::Ordered { size, mirror };
        Self::start(source, options, kind, range, Share::WHOLE)
    }

    /// One batch of `batch_size` images at equal distances over the source (all of a smaller one),
    /// with ADM's centre crop to `size`: of a set sorted by class, some of every class.
    ///
    /// With `skip_bad` the place of a bad image is taken by the next whole one of the source.
    pub fn spread(source: Arc<dyn Source>, options: &LoaderOptions, size: usize) -> Result<Self> {
        let count = options.batch_size.min(source.len()) as u64;
        let kind = Kind::Spread { size, count };
        Self::start(source, options, kind, 0..count, Share::WHOLE)
    }

    /// The same with its batches on `device`; without this they are on the CPU.
    pub fn on(mut self, device: &Device) -> Self {
        self.pixels = Pixels::new(device);
        self
    }

    /// Images left out so far, each counted once.
    pub fn skipped(&self) -> usize {
        lock(&self.skipped).len()
    }

    /// Examples that the threads have read, decoded and cut so far; those that wait in a queue too.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    fn start(
        source: Arc<dyn Source>,
        options: &LoaderOptions,
        kind: Kind,
        range: Range<u64>,
        share: Share,
    ) -> Result<Self> {
        if source.is_empty() {
            return Err(hinted("the data set holds no images", ""));
        }
        let (size, crop) = match &kind {
            Kind::Shuffled { augment, .. } => (augment.size, augment.crop),
            Kind::Ordered { size, .. } | Kind::Spread { size, .. } => (*size, Crop::Center),
        };
        source.serve(size, crop)?;
        let (skipped, total) = (Arc::new(Mutex::new(BTreeSet::new())), source.len());
        let made = Arc::new(AtomicU64::new(0));
        let plan = Arc::new(Plan {
            source,
            kind,
            skip_bad: options.skip_bad,
            skipped: skipped.clone(),
            made: made.clone(),
        });
        let mut threads = Vec::new();
        let mut spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.clone()).spawn(body);
            threads.push(thread.with_context(|| format!("could not start the thread {name}"))?);
            Ok::<_, crate::error::Error>(())
        };
        let workers = options.workers.max(1);
        let (batch_size, count) = (options.batch_size.max(1), range.end - range.start);
        let number = move |own| range.start + share.example(own, batch_size);
        let mut queues = Vec::new();
        for w in 0..workers {
            let (sender, receiver) = sync_channel(AHEAD);
            queues.push(receiver);
            let (plan, own) = (plan.clone(), (w as u64..count).step_by(workers));
            let body = Box::new(move || work(&plan, own.map(number), &sender));
            spawn(format!("rdpm-load-{w}"), body)?;
        }
        let (sender, batches) = sync_channel(READY_BATCHES);
        let body = Box::new(move || assemble(&queues, count, batch_size, &sender));
        spawn("rdpm-batches".to_string(), body)?;
        let batches = Some(batches);
        Ok(Self {
            batches,
            pixels: Pixels::new(&Device::Cpu),
            threads,
            skipped,
            made,
            total,
        })
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    /// The next batch; an error is the last item.
    fn next(&mut self) -> Option<Self::Item> {
        let examples = self.batches.as_ref()?.recv().ok()?;
        Some(examples.and_then(|examples| stack(&mut self.pixels, &examples)))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // A closed channel ends the thread that sends into it, and that in turn its own senders.
        self.batches = None;
        for thread in self.threads.drain(..) {
            // A panic of a worker has been reported as an error already.
            let _ = thread.join();
        }
        let (skipped, total) = (self.skipped(), self.total);
        if skipped > 0 {
            tracing::warn!("{skipped} of {total} images could not be read and were left out");
        }
    }
}

fn work(plan: &Plan, numbers: impl Iterator<Item = u64>, queue: &SyncSender<Made>) {
    for n in numbers {
        let made = catch_unwind(AssertUnwindSafe(|| plan.make(n))).unwrap_or_else(|_| {
            Err(hinted(
                format!("a loader thread panicked at example {n}"),
                "this is an error in rdpm: please report it with the message above",
            ))
        });
        let is_last = made.is_err();
        plan.made.fetch_add(1, Ordering::Relaxed);
        if queue.send(made).is_err() || is_last {
            return;
        }
    }
}

/// Takes examples in turn from the workers' queues and sends those of a batch until either side
/// ends. What is in a batch does not depend on which images are bad.
fn assemble(
    queues: &[Receiver<Made>],
    count: u64,
    size: usize,
    out: &SyncSender<Result<Vec<Prepared>>>,
) {
    let mut turn = queues
        .iter()
        .cycle()
        .take(usize::try_from(count).unwrap_or(usize::MAX));
    loop {
        let made = turn.by_ref().take(size);
        let made: Vec<Made> = made.map_while(|queue| queue.recv().ok()).collect();
        if made.is_empty() {
            return;
        }
        let batch: Result<Vec<_>> = made.into_iter().filter_map(Result::transpose).collect();
        if batch.as_ref().is_ok_and(Vec::is_empty) {
            continue;
        }
        let is_last = batch.is_err();
        if out.send(batch).is_err() || is_last {
            return;
        }
    }
}

fn stack(pixels: &mut Pixels, examples: &[Prepared]) -> Result<Batch> {
    let _span = debug_span!("batch").entered();
    let (width, height) = examples[0].image.dimensions();
    let images: Vec<&[u8]> = examples
        .iter()
        .map(|e| e.image.as_raw().as_slice())
        .collect();
    let mirrored: Vec<bool> = examples.iter().map(|e| e.mirrored).collect();
    let bytes = Bytes {
        height: height as usize,
        width: width as usize,
        images: &images,
        mirrored: &mirrored,
    };
    Ok(Batch {
        images: pixels.tensor(bytes)?,
        labels: examples.iter().map(|e| e.label).collect(),
        indices: examples.iter().map(|e| e.number).collect(),
        names: examples.iter().map(|e| e.name.clone()).collect(),
    })
}

impl Plan {
    fn make(&self, n: u64) -> Made {
        let example = match &self.kind {
            Kind::Shuffled { order, .. } => Some(self.whole_from(order.place(n))?),
            Kind::Ordered { .. } => self.whole_at(n as usize)?,
            Kind::Spread { count, .. } => {
                let place = n * self.source.len() as u64 / count;
                Some(self.whole_from(place as usize)?)
            }
        };
        let _span = debug_span!("augment").entered();
        Ok(example.map(|Example { image, label, key }| {
            let (image, mirrored) = match &self.kind {
                Kind::Shuffled { augment, seed, .. } => {
                    (augment.cut(&image, *seed, n), augment.flips(*seed, n))
                }
                Kind::Ordered { size, mirror } => (center_crop(&image, *size), *mirror),
                Kind::Spread { size, .. } => (center_crop(&image, *size), false),
            };
            Prepared {
                number: n,
                image,
                mirrored,
                label,
                name: key,
            }
        }))
    }

    /// The first whole image at or after `place`, going round.
    fn whole_from(&self, place: usize) -> Result<Example> {
        for place in (place..self.source.len()).chain(0..place) {
            if let Some(example) = self.whole_at(place)? {
                return Ok(example);
            }
        }
        Err(hinted(
            "every image of the data set is bad",
            "the warnings above say why; name other images",
        ))
    }

    /// The image at `place`; none if it is bad and may be skipped.
    fn whole_at(&self, place: usize) -> Result<Option<Example>> {
        if lock(&self.skipped).contains(&place) {
            return Ok(None);
        }
        match self.source.read(place) {
            Ok(example) => Ok(Some(example)),
            Err(error) if self.skip_bad && !error.is::<DataChanged>() => {
                if lock(&self.skipped).insert(place) {
                    tracing::warn!("skipped: {error:#}");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn lock(skipped: &Mutex<BTreeSet<usize>>) -> std::sync::MutexGuard<'_, BTreeSet<usize>> {
    skipped.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
