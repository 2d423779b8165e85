//! Times the reading of a cache of latents, as train-gen reads it, in the order of training:
//! `cargo bench --bench latents -- FOLDER`, on the disk of which 2 GiB are written and removed
//! again.
//!
//! 131,072 latents of [16,16,32], 16 KiB each. Once after the kernel's cache of the disk was
//! emptied, where this process may do that (root), and once from memory. A figure is latents a
//! second, as whoever trains gets them; beside it the bytes a second that it means.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use rdpm::config::Crop;
use rdpm::data::latent_cache::{CacheMeta, LatentCache, Maker};
use rdpm::data::latent_loader::{LatentLoader, LatentOrder};
use rdpm::data::{Augment, Order};
use rdpm::error::{Context, Result, report, usage};
use rdpm::world::Share;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SHAPE: [usize; 3] = [16, 16, 32];
const IMAGES: usize = 131_072;
const BLOCK: usize = 4096;
const BATCH: usize = 256;

/// Latents that are timed.
const TAKEN: usize = 40 * 1024;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (text, code) = report(&error);
            eprintln!("{text}");
            ExitCode::from(code)
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let folder = words.next().ok_or_else(|| {
        usage(
            "no folder",
            "name one on the disk to be timed: cargo bench --bench latents -- DIR",
        )
    })?;
    let path = Path::new(&folder).join("rdpm-bench-latents");
    let timed = time(&path);
    std::fs::remove_dir_all(&path)
        .with_context(|| format!("could not remove {}", path.display()))?;
    timed
}

fn time(path: &Path) -> Result<()> {
    let meta = CacheMeta {
        tokenizer: "0".repeat(64),
        data: "0".repeat(64),
        image_size: 256,
        flip: false,
        shape: SHAPE,
    };
    let [h, w, d] = SHAPE;
    let block = Tensor::rand(0f32, 1f32, (BLOCK, h, w, d), &Device::Cpu)?.to_dtype(DType::BF16)?;
    let begun = Maker::begin(path, &meta, IMAGES, None)?;
    let (maker, parts) = begun.context("there is a cache")?;
    for part in parts {
        let blocks = maker.range(part).len() / BLOCK;
        maker.write(
            part,
            (0..blocks).map(|_| Ok((block.clone(), vec![0; BLOCK]))),
        )?;
    }
    maker.finish()?;
    for seed in 0..2 {
        // The second time all of it is in memory.
        let begin = Instant::now();
        let cache = LatentCache::open(path, &meta)?;
        println!("opened in {:.1} ms", 1e3 * begin.elapsed().as_secs_f64());
        if seed == 1 {
            cache.verify()?;
        }
        let emptied = seed == 0 && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok();
        let order = LatentOrder {
            order: Order::new(seed, IMAGES),
            augment: Augment {
                size: meta.image_size,
                crop: Crop::Center,
                flip: false,
            },
            seed,
            batch_size: BATCH,
            start: 0,
            share: Share::WHOLE,
        };
        let mut values = vec![0f32; BATCH * h * w * d];
        let begin = Instant::now();
        let mut loader = LatentLoader::start(cache, order)?;
        let mut filling = 0.0;
        for _ in 0..TAKEN / BATCH {
            let batch = loader.next_batch()?;
            let filled = Instant::now();
            batch.fill(&mut values);
            filling += filled.elapsed().as_secs_f64();
        }
        let seconds = begin.elapsed().as_secs_f64();
        let rate = TAKEN as f64 / seconds;
        println!(
            "{}: {rate:.0} latents/s, {:.0} MB/s; {:.0} % of the time to convert them to f32",
            if emptied { "cold" } else { "warm" },
            rate * (h * w * d * 2) as f64 / 1e6,
            100.0 * filling / seconds,
        );
    }
    Ok(())
}
