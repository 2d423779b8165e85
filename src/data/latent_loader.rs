//! Latents of a cache in the order of training, read by threads of their own ahead of their use.
//!
//! The stream of examples is cut into pieces, which batches begin anew: of R readers each reads
//! every R-th piece and hands it on through a bounded queue of its own; whoever trains takes them
//! in turn. So batches are the same whatever the number of readers, and a run continues at any
//! example. A piece is read by positioned reads, not by page faults in a mapping: those read far
//! around a random latent (530 a second from a cold disk against 12,600), one at a time, in whoever
//! needs it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use half::bf16;

use super::augment::Augment;
use super::latent_cache::LatentCache;
use super::loader::Order;
use crate::error::{Context, Result};
use crate::world::Share;

/// Threads that wait for the disk: they take no core while they do.
const READERS: usize = 16;

/// Latents that one read of the queue holds.
const PIECE: usize = 32;

/// Batches that may be ready beyond the one in use.
const AHEAD: usize = 2;

/// Which latents a run takes.
pub struct LatentOrder {
    /// Of the images in the cache.
    pub order: Order,
    /// Decides the flips.
    pub augment: Augment,
    pub seed: u64,
    pub batch_size: usize,
    /// The first example's running number.
    pub start: u64,
    /// The batches that are taken, where several processes divide them.
    pub share: Share,
}

impl LatentOrder {
    /// The running number of the first example of this process's batch number `batch`.
    fn first_of(&self, batch: u64) -> u64 {
        self.start + self.share.micro_batch(batch) * self.batch_size.max(1) as u64
    }
}

/// Batches without end; dropping it ends its threads.
pub struct LatentLoader {
    /// Emptied to end the threads.
    queues: Vec<Receiver<Result<Piece>>>,
    threads: Vec<JoinHandle<()>>,
    batch_size: usize,
    /// The next piece's number.
    piece: usize,
    /// The next batch's number among this process's.
    batch: u64,
    plan: Arc<Plan>,
}

/// Latents of neighbouring examples, bf16 as they lie in the cache.
struct Piece {
    bytes: Vec<u8>,
    labels: Vec<u32>,
}

/// The latents of a batch.
pub struct Latents {
    pieces: Vec<Piece>,
    /// The examples' running numbers.
    pub indices: Vec<u64>,
}

impl LatentLoader {
    pub fn start(cache: LatentCache, order: LatentOrder) -> Result<Self> {
        Self::with_readers(cache, order, READERS)
    }

    fn with_readers(cache: LatentCache, order: LatentOrder, readers: usize) -> Result<Self> {
        let batch_size = order.batch_size.max(1);
        let plan = Arc::new(Plan { cache, order });
        let ahead = (AHEAD * batch_size.div_ceil(PIECE)).div_ceil(readers);
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for reader in 0..readers {
            let (sender, queue) = sync_channel(ahead);
            let plan = plan.clone();
            let thread = std::thread::Builder::new()
                .name(format!("rdpm-latents-{reader}"))
                .spawn(move || plan.work(reader, readers, &sender));
            threads.push(thread.context("could not start a thread that reads latents")?);
            queues.push(queue);
        }
        Ok(Self {
            queues,
            threads,
            batch_size,
            piece: 0,
            batch: 0,
            plan,
        })
    }

    /// The next batch.
    ///
    /// Errors: the cache cannot be read.
    pub fn next_batch(&mut self) -> Result<Latents> {
        let mut pieces = Vec::new();
        for _ in 0..self.batch_size.div_ceil(PIECE) {
            let queue = &self.queues[self.piece % self.queues.len()];
            let piece = queue.recv().context("a thread that reads latents ended")?;
            pieces.push(piece?);
            self.piece += 1;
        }
        let first = self.plan.order.first_of(self.batch);
        let indices = (first..).take(self.batch_size).collect();
        self.batch += 1;
        Ok(Latents { pieces, indices })
    }
}

impl Drop for LatentLoader {
    fn drop(&mut self) {
        // A closed queue ends the thread that sends into it.
        self.queues.clear();
        for thread in self.threads.drain(..) {
            // A panic has been reported where the batch was missing.
            let _ = thread.join();
        }
    }
}

impl Latents {
    pub fn labels(&self) -> Vec<u32> {
        let labels = self.pieces.iter().flat_map(|piece| &piece.labels);
        labels.copied().collect()
    }

    /// Puts the values [B,h,w,d] into `out`.
    pub fn fill(&self, out: &mut [f32]) {
        let mut rest = out;
        for piece in &self.pieces {
            let (pairs, _) = piece.bytes.as_chunks::<2>();
            let (here, behind) = rest.split_at_mut(pairs.len());
            for (out, pair) in here.iter_mut().zip(pairs) {
                *out = bf16::from_le_bytes(*pair).to_f32();
            }
            rest = behind;
        }
        assert!(rest.is_empty(), "values of a batch");
    }
}

/// What decides the pieces, shared by the readers.
struct Plan {
    cache: LatentCache,
    order: LatentOrder,
}

impl Plan {
    /// Reads every `readers`-th piece from number `first` on, until nobody takes them.
    fn work(&self, first: usize, readers: usize, queue: &SyncSender<Result<Piece>>) {
        for number in (first..).step_by(readers) {
            let piece = self.read(number);
            let is_last = piece.is_err();
            if queue.send(piece).is_err() || is_last {
                return;
            }
        }
    }

    fn read(&self, number: usize) -> Result<Piece> {
        let batch_size = self.order.batch_size.max(1);
        let in_batch = batch_size.div_ceil(PIECE);
        let (batch, at) = (number / in_batch, number % in_batch * PIECE);
        let first = self.order.first_of(batch as u64) + at as u64;
        let count = PIECE.min(batch_size - at);
        let size = self.cache.bytes_of_one();
        let mut bytes = vec![0; count * size];
        let mut labels = Vec::with_capacity(count);
        for (n, out) in (first..).zip(bytes.chunks_exact_mut(size)) {
            let place = self.order.order.place(n);
            let flipped = self.order.augment.flips(self.order.seed, n);
            labels.push(self.cache.read(place, flipped, out)?);
        }
        Ok(Piece { bytes, labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Crop;
    use crate::data::latent_cache::tests::{cache, meta};

    const IMAGES: usize = 5;

    fn loader(folder: &std::path::Path, batch: usize, start: u64, readers: usize) -> LatentLoader {
        shared(folder, batch, start, readers, Share::WHOLE)
    }

    fn shared(
        folder: &std::path::Path,
        batch: usize,
        start: u64,
        readers: usize,
        share: Share,
    ) -> LatentLoader {
        let cache = cache(&folder.join(format!("latents-{batch}-{start}-{readers}")));
        let order = LatentOrder {
            order: Order::new(9, cache.len()),
            augment: Augment {
                size: meta().image_size,
                crop: Crop::Center,
                flip: true,
            },
            seed: 9,
            batch_size: batch,
            start,
            share,
        };
        LatentLoader::with_readers(cache, order, readers).unwrap()
    }

    /// Value, label and number of so many examples.
    fn examples(mut loader: LatentLoader, count: usize) -> Vec<(f32, u32, u64)> {
        let (mut found, size) = (Vec::new(), meta().shape.iter().product::<usize>());
        while found.len() < count {
            let batch = loader.next_batch().unwrap();
            let mut values = vec![f32::NAN; batch.indices.len() * size];
            batch.fill(&mut values);
            for (i, latent) in values.chunks(size).enumerate() {
                assert!(latent.iter().all(|x| *x == latent[0]));
                found.push((latent[0], batch.labels()[i], batch.indices[i]));
            }
        }
        found.truncate(count);
        found
    }

    #[test]
    fn examples_are_those_of_the_order_however_they_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let augment = Augment {
            size: meta().image_size,
            crop: Crop::Center,
            flip: true,
        };
        let order = Order::new(9, IMAGES);
        let expected: Vec<_> = (0..100u64)
            .map(|n| {
                let (place, flipped) = (order.place(n), augment.flips(9, n));
                let value = (100 * usize::from(flipped) + place) as f32;
                (value, place as u32 + 7, n)
            })
            .collect();
        assert!(expected.iter().any(|e| e.0 < 100.0) && expected.iter().any(|e| e.0 >= 100.0));
        for (batch, readers) in [(1, 1), (3, 2), (32, 8), (33, 3), (70, 2)] {
            let found = examples(loader(folder.path(), batch, 0, readers), 100);
            assert_eq!(found, expected, "batches of {batch}, {readers} readers");
        }
        // A run goes on from any example.
        let found = examples(loader(folder.path(), 40, 37, 8), 63);
        assert_eq!(found, expected[37..]);
        // Two processes take batches in turn.
        for rank in 0..2 {
            let own = shared(folder.path(), 10, 20, 3, Share { rank, size: 2 });
            let batches = expected[20..].chunks(10).skip(rank).step_by(2);
            let theirs: Vec<_> = batches.flatten().copied().collect();
            assert_eq!(examples(own, theirs.len()), theirs, "rank {rank}");
        }
    }

    #[test]
    fn a_cache_that_is_cut_while_it_is_read_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = "latents-4-0-2/part-00001.safetensors";
        let path = folder.path().join(path);
        let mut loader = loader(folder.path(), 4, 0, 2);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(1030).unwrap();
        let error = (0..100).find_map(|_| loader.next_batch().err()).unwrap();
        let text = crate::error::report(&error).0;
        assert!(
            text.contains("part-00001.safetensors: ") && text.contains("remove this file"),
            "{text}"
        );
    }
}
