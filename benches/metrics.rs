//! Times evaluation on the CPU: `cargo bench --bench metrics -- [frechet|pr|inception FILE]`; without a name, the first two.
//!
//! `frechet`: 2048 dimensions, seconds for the reference's eigenvectors and for a distance. `pr`: precision and recall
//! of 50,000 samples against 10,000 reference images, with the peak of memory. `inception`: images a second, weights
//! read from FILE.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use image::RgbImage;
use rdpm::error::{Context, Result};
use rdpm::metrics::precision_recall::precision_recall;
use rdpm::metrics::{
    Arithmetic, FeatureNetwork, Gaussian, Inception, Output, Preprocess, Reference, Rows,
};
use rdpm::rng::{Purpose, Stream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WIDTH: usize = 2048;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let wants = |name: &str| words.is_empty() || words[0] == name;
    if wants("frechet") {
        frechet()?;
    }
    if wants("pr") {
        pr()?;
    }
    match words.get(1) {
        Some(weights) if words[0] == "inception" => inception(Path::new(weights)),
        _ => Ok(()),
    }
}

/// Rows of `WIDTH` numbers, not below nought, as Inception's features.
fn features(seed: u64, count: usize) -> Rows {
    let mut values = vec![0f32; count * WIDTH];
    for (i, row) in values.chunks_exact_mut(WIDTH).enumerate() {
        Stream::new(seed, Purpose::Noise, i as u64, 0).fill_normal(row);
        row.iter_mut().for_each(|x| *x = x.max(0.0));
    }
    let width = WIDTH;
    Rows { width, values }
}

fn frechet() -> Result<()> {
    let gaussians = [1, 2].map(|seed| Gaussian::of(&features(seed, 5000)));
    let [reference, samples] = gaussians;
    let begin = Instant::now();
    let reference = Reference::new(&reference?)?;
    let eigen = begin.elapsed();
    let value = reference.distance(&samples?)?;
    println!(
        "frechet {WIDTH}: eigenvectors {:.2} s, all {:.2} s ({value:.4})",
        eigen.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

fn pr() -> Result<()> {
    let (reference, samples) = (features(1, 10_000), features(2, 50_000));
    let begin = Instant::now();
    let both = precision_recall(&reference, &samples, Arithmetic::Exact)?;
    println!(
        "precision and recall 50000 x 10000: {:.0} s, {both:?}, {}",
        begin.elapsed().as_secs_f64(),
        peak()
    );
    Ok(())
}

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or("no /proc").to_string()
}

fn inception(weights: &Path) -> Result<()> {
    let outputs = [Output::Pool2048];
    let network = Inception::open(weights, &outputs, Preprocess::PytorchFid, &Device::Cpu)?;
    for batch in [1, 16, 50] {
        let images: Vec<_> = (0..batch)
            .map(|i| RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, i])))
            .collect();
        network.features(&images)?;
        let runs = (0..5).map(|_| {
            let begin = Instant::now();
            network
                .features(&images)
                .map(|_| begin.elapsed().as_secs_f64())
        });
        let best = runs.collect::<Result<Vec<_>>>()?;
        let best = best.into_iter().min_by(f64::total_cmp).context("no run")?;
        println!(
            "inception, batch {batch}: {:.2} images a second",
            f64::from(batch) / best
        );
    }
    Ok(())
}
