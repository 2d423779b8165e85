//! `rdpm bench loader`: how fast images are read, decoded, cropped and brought onto the device.

use std::time::{Duration, Instant};

use serde_json::json;

use super::spread;
use crate::cli::config::data_path;
use crate::cli::{Context, print};
use crate::config::Crop;
use crate::data::{Augment, Loader, LoaderOptions, Source, open};
use crate::error::{Context as _, Result};

/// Time the loader on images of your own: read, decoded, cropped, as batches on the device
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders, tar shards, or globs of them in quotes, as for --data
    #[arg(required = true, value_name = "DATA", value_parser = data_path())]
    data: Vec<String>,
    /// Height and width of the crops
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=16384))]
    image_size: u32,
    /// Crop in the middle, as train-gen does, instead of at random
    #[arg(long)]
    center: bool,
    /// Images per batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Numbers of threads, each timed [default: 1, 2, 4, … up to --threads]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    workers: Vec<u16>,
    /// Seconds for each number of threads, after one second of warm-up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// Images that are timed one by one.
const ALONE: usize = 200;

const WARM_UP: Duration = Duration::from_secs(1);

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let device = context.device()?;
    let source = open(&args.data, false)?;
    let augment = Augment {
        size: args.image_size as usize,
        crop: if args.center {
            Crop::Center
        } else {
            Crop::Random
        },
        flip: true,
    };
    source.serve(augment.size, augment.crop)?;
    let [decode, crop] = alone(&*source, augment)?;
    if !args.json {
        print(&format!(
            "one image on one thread: {decode:.2} ms to read and decode, {crop:.2} ms to crop (medians)\n"
        ))?;
    }
    let powers = (0..).map(|power| 1 << power);
    let workers = match args.workers.is_empty() {
        true => powers
            .take_while(|&n| n < context.threads)
            .chain([context.threads])
            .collect(),
        false => args
            .workers
            .iter()
            .map(|&n| n.into())
            .collect::<Vec<usize>>(),
    };
    for workers in workers {
        let options = LoaderOptions {
            batch_size: args.batch_size as usize,
            workers,
            skip_bad: false,
        };
        let mut loader = Loader::shuffled(source.clone(), &options, augment, 0, 0)?.on(&device);
        let mut take = |time: Duration| -> Result<f64> {
            device.synchronize()?;
            let (begin, mut images) = (Instant::now(), 0);
            while begin.elapsed() < time {
                images += loader.next().context("the loader has ended")??.labels.len();
            }
            device.synchronize()?;
            Ok(images as f64 / begin.elapsed().as_secs_f64())
        };
        take(WARM_UP)?;
        let rate = take(Duration::from_secs(args.seconds.into()))?;
        print(&if args.json {
            let line = json!({
                "work": "loader", "size": augment.size, "crop": augment.crop, "batch_size": args.batch_size,
                "workers": workers, "images_per_second": rate, "decode_ms": decode, "crop_ms": crop,
                "device": format!("{:?}", device.location()),
            });
            format!("{line}\n")
        } else {
            format!("{workers:>4} threads: {rate:.0} images/s\n")
        })?;
    }
    Ok(())
}

/// Medians of the milliseconds that one image takes to be read and decoded, and to be cropped.
fn alone(source: &dyn Source, augment: Augment) -> Result<[f64; 2]> {
    let (mut decode, mut crop) = (Vec::new(), Vec::new());
    for n in 0..ALONE {
        let begin = Instant::now();
        let example = source.read(n * source.len() / ALONE)?;
        let decoded = Instant::now();
        std::hint::black_box(augment.cut(&example.image, 0, n as u64));
        crop.push(decoded.elapsed().as_secs_f64() * 1e3);
        decode.push((decoded - begin).as_secs_f64() * 1e3);
    }
    Ok([decode, crop].map(|times| spread(&times)[0]))
}
