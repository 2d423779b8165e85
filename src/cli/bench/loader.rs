//! `rdpm bench loader`: how fast images are read, decoded, cropped and brought onto the device.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::config::data_path;
use crate::cli::{Context, print};
use crate::config::Crop;
use crate::data::{Augment, Loader, LoaderOptions, Source, open};
use crate::error::{Context as _, Result, hinted};

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
const ALONE: usize = 400;

/// How often each is timed, after a first time that reads files and code into memory.
const TIMES: usize = 3;

/// How far a rate may exceed what the time of one image allows each thread: the images that are
/// timed one by one are not those that the threads get.
const MARGIN: f64 = 1.1;

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
            "one image on one thread: {decode:.2} ms to read and decode, {crop:.2} ms to crop \
             (best of {TIMES}, mean of {ALONE} images)\n"
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
        // What waits in the queues at the beginning was not made in this time, and what waits there
        // at the end was not taken.
        let mut take = |time: Duration| -> Result<f64> {
            device.synchronize()?;
            let (begin, before, mut taken) = (Instant::now(), loader.made(), 0);
            while begin.elapsed() < time {
                taken += loader.next().context("the loader has ended")??.labels.len() as u64;
            }
            device.synchronize()?;
            let seconds = begin.elapsed().as_secs_f64();
            Ok(taken.min(loader.made() - before) as f64 / seconds)
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
        possible(rate, workers, decode + crop)?;
    }
    Ok(())
}

/// Milliseconds that one image takes on this thread to be read and decoded, and to be cropped, with
/// files and code in memory: the best of some times, so that other work on the machine does not
/// count, and the mean over images, which is what a rate consists of.
fn alone(source: &dyn Source, augment: Augment) -> Result<[f64; 2]> {
    let mut best = vec![[f64::INFINITY; 2]; ALONE];
    for time in 0..=TIMES {
        for (n, best) in best.iter_mut().enumerate() {
            let begin = Instant::now();
            let example = source.read(n * source.len() / ALONE)?;
            let decoded = Instant::now();
            std::hint::black_box(augment.cut(&example.image, 0, n as u64));
            let times = [decoded - begin, decoded.elapsed()].map(|t| t.as_secs_f64() * 1e3);
            if time > 0 {
                *best = [0, 1].map(|i| best[i].min(times[i]));
            }
        }
    }
    Ok([0, 1].map(|i| best.iter().map(|b| b[i]).sum::<f64>() / ALONE as f64))
}

/// Errors: a rate that so many threads cannot reach, each of which takes `milliseconds` per image.
fn possible(rate: f64, workers: usize, milliseconds: f64) -> Result<()> {
    let limit = workers as f64 * 1e3 / milliseconds;
    if rate <= MARGIN * limit {
        return Ok(());
    }
    Err(hinted(
        format!(
            "{rate:.0} images/s with {workers} threads, but at {milliseconds:.2} ms per image they reach \
             {limit:.0}"
        ),
        "one of the two times is wrong: run it again while nothing else computes on this machine",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    #[test]
    fn a_rate_above_what_the_threads_can_do_is_refused() {
        assert!(possible(875.0, 2, 3.5).is_err());
        assert!(possible(571.0, 2, 3.5).is_ok());
        assert!(possible(620.0, 2, 3.5).is_ok());
        let (text, code) = report(&possible(640.0, 2, 3.5).unwrap_err());
        assert!(text.contains("they reach 571"), "{text}");
        assert_eq!(code, 1);
    }
}
