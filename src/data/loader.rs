//! Batches [B,H,W,3] in [-1,1] from a source, read, decoded and cut by threads of its own ahead of their use.
//!
//! Examples are numbered through all epochs: number n is place n mod len of epoch n div len, whose order is a
//! permutation drawn from (seed, epoch). Of W workers each makes every W-th example and hands it on through a
//! bounded queue of its own; one more thread takes them in turn and makes batches. So batches, and the first error, are the same
//! whatever the number of workers, and a run continues at any number without reading what came before.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};
use image::RgbImage;
use tracing::debug_span;

use super::augment::{Augment, center_crop, mirrored};
use super::source::{Example, Source};
use crate::error::{Context, Result, hinted};
use crate::rng::{Purpose, Stream};

/// Batches ready beyond the one in use.
const READY_BATCHES: usize = 2;

/// Examples each worker may be ahead.
const AHEAD: usize = 16;

/// What goes into one step.
#[derive(Debug)]
pub struct Batch {
    /// [B,H,W,3] in [-1,1], on the CPU.
    pub images: Tensor,
    /// 0 where the source has no classes.
    pub labels: Vec<u32>,
    /// The examples' running numbers; in an ordered pass, their places in the source.
    pub indices: Vec<u64>,
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

/// Fisher–Yates with 64 bits a swap, so that the bias is below len·2⁻⁶⁴.
fn permutation(seed: u64, epoch: u64, len: usize) -> Arc<[u32]> {
    let stream = Stream::new(seed, Purpose::Shuffle, epoch, 0);
    let mut order: Vec<u32> = (0..len as u32).collect();
    for i in (1..len).rev() {
        let words = stream.words((i / 2) as u32);
        let high = words[i % 2 * 2];
        let drawn = u64::from(high) << 32 | u64::from(words[i % 2 * 2 + 1]);
        let j = (u128::from(drawn) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order.into()
}

/// An iterator over batches; dropping it ends its threads.
pub struct Loader {
    batches: Option<Receiver<Result<Batch>>>,
    threads: Vec<JoinHandle<()>>,
    skipped: Arc<Mutex<BTreeSet<usize>>>,
}

/// What decides an example, shared by the workers.
struct Plan {
    source: Arc<dyn Source>,
    kind: Kind,
    skip_bad: bool,
    skipped: Arc<Mutex<BTreeSet<usize>>>,
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
}

/// An example ready for its batch; none where it was left out.
type Made = Result<Option<(u64, RgbImage, u32)>>;

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
        let order = Order::new(seed, source.len());
        let kind = Kind::Shuffled {
            augment,
            seed,
            order,
        };
        Self::start(source, options, kind, start..u64::MAX)
    }

    /// One pass over the source in its order, with ADM's centre crop to `size`; the last batch may be smaller.
    ///
    /// `mirror` flips every image. With `skip_bad` bad images are missing from the batches.
    pub fn ordered(
        source: Arc<dyn Source>,
        options: &LoaderOptions,
        size: usize,
        mirror: bool,
    ) -> Result<Self> {
        let range = 0..source.len() as u64;
        Self::start(source, options, Kind::Ordered { size, mirror }, range)
    }

    /// Images left out so far, each counted once.
    pub fn skipped(&self) -> usize {
        lock(&self.skipped).len()
    }

    fn start(
        source: Arc<dyn Source>,
        options: &LoaderOptions,
        kind: Kind,
        range: std::ops::Range<u64>,
    ) -> Result<Self> {
        if source.is_empty() {
            return Err(hinted("the data set holds no images", ""));
        }
        let skipped = Arc::new(Mutex::new(BTreeSet::new()));
        let plan = Arc::new(Plan {
            source,
            kind,
            skip_bad: options.skip_bad,
            skipped: skipped.clone(),
        });
        let mut threads = Vec::new();
        let mut spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.clone()).spawn(body);
            threads.push(thread.with_context(|| format!("could not start the thread {name}"))?);
            Ok::<_, crate::error::Error>(())
        };
        let workers = options.workers.max(1);
        let mut queues = Vec::new();
        for w in 0..workers {
            let (sender, receiver) = sync_channel(AHEAD);
            queues.push(receiver);
            let (plan, numbers) = (plan.clone(), range.clone().skip(w).step_by(workers));
            let body = Box::new(move || work(&plan, numbers, &sender));
            spawn(format!("rdpm-load-{w}"), body)?;
        }
        let (sender, batches) = sync_channel(READY_BATCHES);
        let (batch_size, count) = (options.batch_size.max(1), range.end - range.start);
        let body = Box::new(move || assemble(&queues, count, batch_size, &sender));
        spawn("rdpm-batches".to_string(), body)?;
        let batches = Some(batches);
        Ok(Self {
            batches,
            threads,
            skipped,
        })
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    /// The next batch; an error is the last item.
    fn next(&mut self) -> Option<Self::Item> {
        self.batches.as_ref()?.recv().ok()
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
        if queue.send(made).is_err() || is_last {
            return;
        }
    }
}

/// Takes examples in turn from the workers' queues and sends batches until either side ends.
fn assemble(queues: &[Receiver<Made>], count: u64, size: usize, out: &SyncSender<Result<Batch>>) {
    let mut turn = queues
        .iter()
        .cycle()
        .take(usize::try_from(count).unwrap_or(usize::MAX));
    loop {
        let made = turn.by_ref().map_while(|queue| queue.recv().ok());
        let batch: Result<Vec<_>> = made.filter_map(Result::transpose).take(size).collect();
        let batch = match batch {
            Ok(examples) if examples.is_empty() => return,
            Ok(examples) => stack(&examples),
            Err(error) => Err(error),
        };
        let is_last = batch.is_err();
        if out.send(batch).is_err() || is_last {
            return;
        }
    }
}

fn stack(examples: &[(u64, RgbImage, u32)]) -> Result<Batch> {
    let _span = debug_span!("batch").entered();
    let (width, height) = examples[0].1.dimensions();
    let shape = (examples.len(), height as usize, width as usize, 3);
    let mut values = Vec::with_capacity(shape.0 * shape.1 * shape.2 * 3);
    for (_, image, _) in examples {
        values.extend(image.as_raw().iter().map(|&p| f32::from(p) / 127.5 - 1.0));
    }
    Ok(Batch {
        images: Tensor::from_vec(values, shape, &Device::Cpu)?,
        labels: examples.iter().map(|(_, _, label)| *label).collect(),
        indices: examples.iter().map(|(n, _, _)| *n).collect(),
    })
}

impl Plan {
    fn make(&self, n: u64) -> Made {
        let example = match &self.kind {
            Kind::Shuffled { order, .. } => Some(self.whole_from(order.place(n))?),
            Kind::Ordered { .. } => self.whole_at(n as usize)?,
        };
        let _span = debug_span!("augment").entered();
        Ok(example.map(|Example { image, label, .. }| {
            let image = match &self.kind {
                Kind::Shuffled { augment, seed, .. } => augment.apply(&image, *seed, n),
                Kind::Ordered { size, mirror: true } => mirrored(&center_crop(&image, *size)),
                Kind::Ordered {
                    size,
                    mirror: false,
                } => center_crop(&image, *size),
            };
            (n, image, label)
        }))
    }

    /// The first whole image at or after `place`, going round.
    fn whole_from(&self, place: usize) -> Result<Example> {
        for place in (place..self.source.len()).chain(0..place) {
            if let Some(example) = self.whole_at(place)? {
                return Ok(example);
            }
        }
        Err(hinted("every image of the data set is bad", ""))
    }

    /// The image at `place`; none if it is bad and may be skipped.
    fn whole_at(&self, place: usize) -> Result<Option<Example>> {
        if lock(&self.skipped).contains(&place) {
            return Ok(None);
        }
        match self.source.read(place) {
            Ok(example) => Ok(Some(example)),
            Err(error) if self.skip_bad => {
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
mod tests {
    use super::*;
    use crate::config::Crop;
    use crate::data::Classes;
    use crate::data::shapes::Shapes;

    fn options(workers: usize) -> LoaderOptions {
        LoaderOptions {
            batch_size: 3,
            workers,
            skip_bad: false,
        }
    }

    const AUGMENT: Augment = Augment {
        size: 24,
        crop: Crop::Random,
        flip: true,
    };

    fn shuffled(source: Arc<dyn Source>, workers: usize, start: u64) -> Loader {
        Loader::shuffled(source, &options(workers), AUGMENT, 5, start).unwrap()
    }

    fn values(batch: &Batch) -> (Vec<f32>, Vec<u32>, Vec<u64>) {
        let images = batch.images.flatten_all().unwrap().to_vec1().unwrap();
        (images, batch.labels.clone(), batch.indices.clone())
    }

    fn take(loader: Loader, count: usize) -> Vec<(Vec<f32>, Vec<u32>, Vec<u64>)> {
        loader
            .take(count)
            .map(|batch| values(&batch.unwrap()))
            .collect()
    }

    #[test]
    fn batches_are_the_same_whatever_the_number_of_workers() {
        let source: Arc<dyn Source> = Arc::new(Shapes::new(1, 10));
        let one = take(shuffled(source.clone(), 1, 0), 9);
        assert_eq!(one[8].2, [24, 25, 26]);
        for workers in [2, 3, 7] {
            assert_eq!(take(shuffled(source.clone(), workers, 0), 9), one);
        }
    }

    #[test]
    fn a_run_continues_at_any_number_across_epochs() {
        let source: Arc<dyn Source> = Arc::new(Shapes::new(1, 10));
        let all = take(shuffled(source.clone(), 2, 0), 8);
        assert_eq!(take(shuffled(source, 2, 9), 5), all[3..]);
    }

    #[test]
    fn every_epoch_holds_every_image_once_in_another_order() {
        let order = Order::new(3, 100);
        let epoch = |e: u64| {
            (e * 100..(e + 1) * 100)
                .map(|n| order.place(n))
                .collect::<Vec<_>>()
        };
        for e in 0..3 {
            let mut sorted = epoch(e);
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..100));
        }
        assert_ne!(epoch(0), epoch(1));
        assert_ne!(Order::new(4, 100).place(0), order.place(0));
        assert_eq!(
            epoch(0),
            (0..100)
                .map(|n| Order::new(3, 100).place(n))
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn an_ordered_pass_sees_every_image_once_and_ends() {
        let source: Arc<dyn Source> = Arc::new(Shapes::new(1, 10));
        let pass = |mirror| {
            take(
                Loader::ordered(source.clone(), &options(4), 32, mirror).unwrap(),
                usize::MAX,
            )
        };
        let (plain, mirrored) = (pass(false), pass(true));
        let indices: Vec<u64> = plain.iter().flat_map(|b| b.2.clone()).collect();
        assert_eq!(indices, (0..10).collect::<Vec<_>>());
        assert_eq!(plain[3].1, [9]);
        let row = |batch: &(Vec<f32>, Vec<u32>, Vec<u64>)| batch.0[..32 * 3].to_vec();
        let back: Vec<f32> = row(&mirrored[0])
            .chunks(3)
            .rev()
            .flatten()
            .copied()
            .collect();
        assert_eq!(back, row(&plain[0]));
        let first = source.read(0).unwrap().image;
        let expected: Vec<f32> = first.as_raw()[..32 * 3]
            .iter()
            .map(|&p| f32::from(p) / 127.5 - 1.0)
            .collect();
        assert_eq!(row(&plain[0]), expected);
    }

    /// Drawings of which some cannot be read, and one makes its reader panic.
    struct Damaged {
        shapes: Shapes,
        bad: Vec<usize>,
        panics: Option<usize>,
    }

    impl Source for Damaged {
        fn len(&self) -> usize {
            self.shapes.len()
        }
        fn classes(&self) -> &Classes {
            self.shapes.classes()
        }
        fn read(&self, index: usize) -> Result<Example> {
            assert_ne!(Some(index), self.panics);
            match self.bad.contains(&index) {
                true => Err(hinted(format!("path/{index}: bad"), "")),
                false => self.shapes.read(index),
            }
        }
        fn fingerprint(&self) -> Result<String> {
            self.shapes.fingerprint()
        }
    }

    fn damaged(bad: &[usize], panics: Option<usize>) -> Arc<dyn Source> {
        Arc::new(Damaged {
            shapes: Shapes::new(1, 10),
            bad: bad.to_vec(),
            panics,
        })
    }

    #[test]
    fn the_first_bad_image_is_the_error_and_the_last_item() {
        for workers in [1, 2, 5] {
            let loader = Loader::ordered(damaged(&[4, 5, 8], None), &options(workers), 32, false);
            let items: Vec<_> = loader.unwrap().collect();
            assert_eq!(items.len(), 2, "{workers} workers");
            assert_eq!(items[0].as_ref().unwrap().indices, [0, 1, 2]);
            assert_eq!(items[1].as_ref().unwrap_err().to_string(), "path/4: bad");
        }
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let loader = Loader::ordered(damaged(&[], Some(1)), &options(2), 32, false);
        let items: Vec<_> = loader.unwrap().collect();
        assert_eq!(items.len(), 1);
        assert!(
            items[0]
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("panicked at example 1")
        );
    }

    #[test]
    fn skipped_images_are_counted_once_and_their_place_is_taken() {
        let skip = |workers| LoaderOptions {
            skip_bad: true,
            ..options(workers)
        };
        let source = damaged(&[4, 5, 8], None);
        let ordered = Loader::ordered(source.clone(), &skip(2), 32, false).unwrap();
        let indices: Vec<u64> = take(ordered, usize::MAX)
            .into_iter()
            .flat_map(|b| b.2)
            .collect();
        assert_eq!(indices, [0, 1, 2, 3, 6, 7, 9]);

        let mut runs =
            [1, 3].map(|w| Loader::shuffled(source.clone(), &skip(w), AUGMENT, 5, 0).unwrap());
        let batches = |run: &mut Loader| {
            run.take(12)
                .map(|b| values(&b.unwrap()))
                .collect::<Vec<_>>()
        };
        let [one, three] = runs.each_mut().map(batches);
        assert_eq!(one, three);
        assert_eq!(runs[0].skipped(), 3);
        let labels: Vec<u32> = one.iter().take(10).flat_map(|b| b.1.clone()).collect();
        let count = |label: u32| labels.iter().filter(|&&l| l == label).count();
        assert_eq!(
            [count(4), count(5), count(6), count(8), count(9)],
            [0, 0, 9, 0, 6]
        );

        let all: Vec<usize> = (0..10).collect();
        let mut none = Loader::shuffled(damaged(&all, None), &skip(2), AUGMENT, 5, 0).unwrap();
        assert!(none.next().unwrap().is_err());
    }

    #[test]
    fn dropping_a_loader_that_is_ahead_ends_its_threads() {
        for workers in [1, 4] {
            let mut loader = shuffled(Arc::new(Shapes::new(1, 10)), workers, 0);
            loader.next().unwrap().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(loader);
        }
    }
}
