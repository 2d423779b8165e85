//! Times evaluation on the CPU: `cargo bench --bench metrics -- [frechet|pr|inception FILE]`;
//! without a name, the first two.
//!
//! `frechet`: 2048 dimensions, seconds for the reference's eigenvectors and for a distance. `pr`:
//! precision and recall of 50,000 samples against 10,000 reference images, with the peak memory.
//! `inception`: images/s, with weights from FILE. Each is printed with the rate that it implies; a
//! rate above the machine's peak ends with exit code 1.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::Device;
use image::RgbImage;
use rdpm::error::{Context, Result, report};
use rdpm::metrics::precision_recall::precision_recall;
use rdpm::metrics::{
    Arithmetic, FeatureNetwork, Gaussian, Inception, Output, Preprocess, Reference, Rows,
};
use rdpm::rng::{Purpose, Stream};
use rdpm::telemetry::{Rates, Work};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WIDTH: usize = 2048;

/// n³ of [`WIDTH`].
const CUBE: f64 = (WIDTH * WIDTH * WIDTH) as f64;

/// FLOP of Inception v3 up to its pool at 299×299, counting matmuls only.
const INCEPTION: f64 = 11.4e9;

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
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let wants = |name: &str| words.is_empty() || words[0] == name;
    let mut rates = Rates::measure();
    if wants("frechet") {
        frechet(&mut rates)?;
    }
    if wants("pr") {
        pr(&mut rates)?;
    }
    if let Some(weights) = words.get(1)
        && words[0] == "inception"
    {
        inception(Path::new(weights), &mut rates)?;
    }
    rates.verdict()
}

/// Rows of `WIDTH` non-negative numbers, like Inception's features.
fn features(seed: u64, count: usize) -> Rows {
    let mut values = vec![0f32; count * WIDTH];
    for (i, row) in values.chunks_exact_mut(WIDTH).enumerate() {
        Stream::new(seed, Purpose::Noise, i as u64, 0).fill_normal(row);
        row.iter_mut().for_each(|x| *x = x.max(0.0));
    }
    let width = WIDTH;
    Rows { width, values }
}

fn frechet(rates: &mut Rates) -> Result<()> {
    let gaussians = [1, 2].map(|seed| Gaussian::of(&features(seed, 5000)));
    let [reference, samples] = gaussians;
    let begin = Instant::now();
    let reference = Reference::new(&reference?)?;
    let eigen = begin.elapsed();
    let value = reference.distance(&samples?)?;
    let (eigen, all) = (eigen.as_secs_f64(), begin.elapsed().as_secs_f64());
    // A lower bound: 4/3 n³ for the tridiagonal matrix and 2 n³ for its vectors; two matmuls and
    // 4/3 n³ for the distance.
    let flop = |part: f64| Work::DoubleFlop(part * CUBE);
    println!(
        "frechet {WIDTH}: eigenvectors {eigen:.2} s ({}), all {all:.2} s ({}), {value:.4}",
        rates.of("eigenvectors", flop(10.0 / 3.0), eigen),
        rates.of("frechet", flop(26.0 / 3.0), all),
    );
    Ok(())
}

fn pr(rates: &mut Rates) -> Result<()> {
    let (reference, samples) = (features(1, 10_000), features(2, 50_000));
    let begin = Instant::now();
    let both = precision_recall(&reference, &samples, Arithmetic::Exact)?;
    let seconds = begin.elapsed().as_secs_f64();
    let (r, s) = (reference.count() as f64, samples.count() as f64);
    let flop = 2.0 * WIDTH as f64 * (r * r + s * s + r * s);
    println!(
        "precision and recall 50000 x 10000: {seconds:.0} s ({}), {both:?}, {}",
        rates.of("precision and recall", Work::DoubleFlop(flop), seconds),
        peak()
    );
    Ok(())
}

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or("no /proc").to_string()
}

fn inception(weights: &Path, rates: &mut Rates) -> Result<()> {
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
            "inception, batch {batch}: {:.2} images a second ({})",
            f64::from(batch) / best,
            rates.of("inception", Work::Flop(f64::from(batch) * INCEPTION), best)
        );
    }
    Ok(())
}
