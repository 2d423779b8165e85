//! Times the operations on the CPU: `cargo bench --bench ops -- [part of a name]`. `benches/ops.py`
//! does the same in PyTorch, except for the quantizer, the optimizer and the noise.
//!
//! One line per operation and size: milliseconds for forward, and for forward with all gradients.
//! Each is the median of the runs and, after it, the fastest run (compare this one if others use
//! the machine) with the rate that it implies. The rate counts the FLOP of matmuls; for other
//! operations, the bytes of inputs, outputs and their gradients, each read or written once. A rate
//! above the machine's peak ends with exit code 1. `rdpm` gives candle's own pool one thread:
//! CANDLE_NUM_THREADS=1 does that here.

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor, Var};
use rdpm::config::ScheduleConfig;
use rdpm::error;
use rdpm::ops::quantize::Schedule;
use rdpm::ops::{self, Activation, AdamStep, Codebook, Noise, Padding, RopeKind, RopeTable};
use rdpm::rng::{Purpose, Stream};
use rdpm::telemetry::{Rates, Work};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RUN_FOR: Duration = Duration::from_millis(600);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (text, code) = error::report(&error);
            eprintln!("{text}");
            ExitCode::from(code)
        }
    }
}

fn run() -> error::Result<()> {
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let bench = Bench {
        wanted: wanted.unwrap_or_default(),
        rates: RefCell::new(Rates::measure()),
    };
    println!(
        "{:44} {:>21} {:>53}",
        "", "forward ms", "forward+backward ms"
    );
    convolutions(&bench)?;
    linears(&bench)?;
    resizing(&bench)?;
    norms(&bench)?;
    transformer(&bench)?;
    quantizer(&bench)?;
    optimizer(&bench)?;
    noise(&bench)?;
    bench.rates.into_inner().verdict()
}

fn convolutions(bench: &Bench) -> Result<()> {
    let sizes = [
        (16, 16, 64, 64, 3, 1),
        (16, 32, 64, 64, 3, 1),
        (4, 64, 128, 128, 3, 1),
        (16, 32, 64, 128, 4, 2),
        (16, 32, 3, 64, 3, 1),
        (16, 32, 64, 3, 3, 1),
        (16, 8, 256, 256, 3, 1),
        (16, 16, 64, 128, 1, 1),
        (1, 4, 128, 128, 3, 1),
    ];
    for (batch, side, channels, outputs, kernel, stride) in sizes {
        let name = format!("conv {kernel}x{kernel}/{stride} {channels}→{outputs} {side}² b{batch}");
        let padding = Padding::same((kernel - 1) / 2);
        let output = (side + 2 * ((kernel - 1) / 2) - kernel) / stride + 1;
        let flop = 2 * batch * output * output * kernel * kernel * channels * outputs;
        bench.products(
            &name,
            &[
                &[batch, side, side, channels],
                &[outputs, channels, kernel, kernel],
                &[outputs],
            ],
            // The gradients of the map and of the weight are one matmul each.
            [flop, 3 * flop],
            |t| ops::conv2d(&t[0], &t[1], Some(&t[2]), stride, padding),
        )?;
    }
    Ok(())
}

fn linears(bench: &Bench) -> Result<()> {
    for (rows, inputs, outputs) in [
        (16, 128, 768),
        (1024, 128, 512),
        (4096, 512, 1536),
        (16384, 256, 2048),
    ] {
        let flop = 2 * rows * inputs * outputs;
        bench.products(
            &format!("linear [{rows},{inputs}]→{outputs}"),
            &[&[rows, inputs], &[outputs, inputs], &[outputs]],
            [flop, 3 * flop],
            |t| ops::linear(&t[0], &t[1], Some(&t[2])),
        )?;
    }
    Ok(())
}

fn resizing(bench: &Bench) -> Result<()> {
    let map: &[&[usize]] = &[&[16, 32, 32, 64]];
    let none = Padding::same(0);
    bench.case("upsample 64 32² b16", map, |t| {
        ops::upsample_nearest2x(&t[0])
    })?;
    bench.case("max pool 2/2 64 32² b16", map, |t| {
        ops::max_pool2d(&t[0], 2, 2, none)
    })?;
    bench.case("average pool 3/1 64 32² b16", map, |t| {
        ops::avg_pool2d(&t[0], 3, 1, Padding::same(1))
    })?;
    bench.case("relu 64 32² b16", map, |t| ops::relu(&t[0]))
}

fn norms(bench: &Bench) -> Result<()> {
    for (side, channels) in [(16, 64), (32, 64), (8, 256)] {
        let shapes: &[&[usize]] = &[&[16, side, side, channels], &[channels], &[channels]];
        bench.case(
            &format!("group norm+silu {channels} {side}² b16"),
            shapes,
            |t| ops::group_norm(&t[0], &t[1], &t[2], 32, 1e-6, Activation::Silu),
        )?;
        bench.case(
            &format!("batch norm+leaky {channels} {side}² b16"),
            shapes,
            |t| Ok(ops::batch_norm(&t[0], &t[1], &t[2], 1e-5, Activation::LeakyRelu(0.2))?.0),
        )?;
    }
    bench.case(
        "layer norm [16384,32]",
        &[&[16384, 32], &[32], &[32]],
        |t| ops::layer_norm(&t[0], &t[1], &t[2], 1e-5),
    )?;
    bench.case("silu 64 32² b16", &[&[16, 32, 32, 64]], |t| {
        ops::silu(&t[0])
    })
}

fn transformer(bench: &Bench) -> Result<()> {
    for (b, n, c) in [(16, 64, 128), (32, 256, 768)] {
        bench.case(
            &format!("rms norm+modulate [{b},{n},{c}]"),
            &[&[b, n, c], &[b, c], &[b, c]],
            |t| ops::rms_norm_modulate(&t[0], &t[1], &t[2], 1e-6),
        )?;
        bench.case(
            &format!("gate+residual [{b},{n},{c}]"),
            &[&[b, n, c], &[b, c], &[b, n, c]],
            |t| ops::gate_residual(&t[0], &t[1], &t[2]),
        )?;
    }
    for (b, side, heads, d) in [(16, 8, 4, 32), (16, 16, 8, 64), (8, 16, 1, 512)] {
        let kind = RopeKind::OneD;
        let rope = RopeTable::new((side, side), d, 10_000.0, kind, &Device::Cpu)?;
        let product = 2 * b * heads * side.pow(4) * d;
        bench.products(
            &format!("attention {side}² {heads} heads of {d} b{b}"),
            &[&[b, side * side, 3 * heads * d]],
            // Two matmuls forward; the backward pass recomputes the scores and needs four more.
            [2 * product, 7 * product],
            |t| ops::attention(&t[0], heads, Some(&rope)),
        )?;
    }
    bench.case("swiglu [1024,2·352]", &[&[1024, 2 * 352]], |t| {
        ops::swiglu(&t[0])
    })?;
    for (rows, classes) in [(1024, 512), (4096, 4096)] {
        let targets = (0..rows).map(|row| row as u32 % classes as u32);
        let targets = Tensor::from_iter(targets, &Device::Cpu)?;
        bench.case(
            &format!("cross-entropy [{rows},{classes}]"),
            &[&[rows, classes]],
            |t| Ok(ops::cross_entropy(&t[0], &targets)?.loss),
        )?;
    }
    Ok(())
}

/// All ten steps, with given noise and with drawn noise.
fn quantizer(bench: &Bench) -> Result<()> {
    let schedule = Schedule::new(&ScheduleConfig::default(), 10);
    for (b, side, d, k) in [(16, 8, 8, 512), (16, 8, 32, 4096), (8, 16, 32, 4096)] {
        let random = |std: f32, shape: &[usize]| Tensor::randn(0f32, std, shape, &Device::Cpu);
        let codebook = Codebook {
            embedding: random(0.5, &[k, d])?,
            bias: Some((random(0.05, &[d, d, 3, 3])?, random(0.1, &[d])?)),
        };
        let (v, given) = (
            random(1.0, &[b, side, side, d])?,
            random(1.0, &[10, b, side, side, d])?,
        );
        let indices: Vec<u64> = (0..b as u64).collect();
        let drawn = Noise::Drawn {
            seed: 1,
            indices: &indices,
        };
        for (kind, noise) in [("given", Noise::Given(&given)), ("drawn", drawn)] {
            let products = 2 * 10 * b * side * side * d * (k + 9 * d);
            bench.forward(
                &format!("quantize {d}, {k} codes {side}² b{b}, noise {kind}"),
                Work::Flop(products as f64),
                || ops::recurrent_quantize(&v, &codebook, &noise, &schedule).map(drop),
            )?;
        }
    }
    Ok(())
}

fn optimizer(bench: &Bench) -> Result<()> {
    let values = || Var::randn(0f32, 1f32, 1 << 22, &Device::Cpu);
    let (param, m, v, ema) = (
        values()?,
        values()?,
        Var::ones(1 << 22, DType::F32, &Device::Cpu)?,
        values()?,
    );
    let gradient = values()?;
    let step = |ema_decay| AdamStep {
        step: 1,
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.03,
        grad_scale: 1.0,
        ema_decay,
    };
    let floats = |count: usize| Work::Bytes(((count * 4) << 22) as f64);
    // Parameter and moments are read and written, the gradient is read.
    bench.forward("AdamW 4M", floats(7), || {
        ops::adam_step(&param, &gradient, &m, &v, None, &step(None))
    })?;
    bench.forward("AdamW and EMA 4M", floats(9), || {
        ops::adam_step(&param, &gradient, &m, &v, Some(&ema), &step(Some(0.999)))
    })?;
    bench.forward("gradient norm 4M", floats(1), || {
        ops::global_norm([gradient.as_tensor()]).map(drop)
    })
}

/// On one thread.
fn noise(bench: &Bench) -> Result<()> {
    let stream = Stream::new(1, Purpose::Noise, 0, 1);
    let mut out = vec![0f32; 1 << 22];
    let written = Work::Bytes((4 << 22) as f64);
    bench.forward("uniform 4M", written, || {
        stream.fill_uniform(&mut out);
        Ok(())
    })?;
    bench.forward("normal 4M", written, || {
        stream.fill_normal(&mut out);
        Ok(())
    })
}

struct Bench {
    wanted: String,
    rates: RefCell<Rates>,
}

impl Bench {
    /// Times `f`, which has no gradient.
    fn forward(&self, name: &str, work: Work, f: impl FnMut() -> Result<()>) -> Result<()> {
        if name.contains(&self.wanted) {
            println!("{name:44} {}", self.told(name, &time(f)?, work));
        }
        Ok(())
    }

    /// Times `f` on random variables of these shapes.
    fn case(
        &self,
        name: &str,
        shapes: &[&[usize]],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        self.differentiable(name, shapes, None, f)
    }

    /// Like [`Bench::case`] for matmuls, with their FLOP for forward, and for forward and backward.
    fn products(
        &self,
        name: &str,
        shapes: &[&[usize]],
        flop: [usize; 2],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        self.differentiable(name, shapes, Some(flop), f)
    }

    fn differentiable(
        &self,
        name: &str,
        shapes: &[&[usize]],
        flop: Option<[usize; 2]>,
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        if !name.contains(&self.wanted) {
            return Ok(());
        }
        let vars = shapes
            .iter()
            .map(|&shape| Var::randn(0f32, 1f32, shape, &Device::Cpu))
            .collect::<Result<Vec<_>>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let plain: Vec<Tensor> = tracked.iter().map(Tensor::detach).collect();
        let upstream = Tensor::ones(f(&plain)?.shape(), DType::F32, &Device::Cpu)?;
        let forward = time(|| f(&plain).map(drop))?;
        let both = time(|| {
            let y = f(&tracked)?;
            seed(&y, &upstream)?.backward().map(drop)
        })?;
        let moved =
            4 * (plain.iter().map(Tensor::elem_count).sum::<usize>() + upstream.elem_count());
        let work = match flop {
            Some(flop) => flop.map(|flop| Work::Flop(flop as f64)),
            None => [moved, 2 * moved].map(|bytes| Work::Bytes(bytes as f64)),
        };
        let forward = self.told(&format!("{name} forward"), &forward, work[0]);
        let both = self.told(&format!("{name} forward+backward"), &both, work[1]);
        println!("{name:44} {forward} {both}");
        Ok(())
    }

    /// Formats median and fastest in milliseconds, and the rate of the fastest.
    fn told(&self, name: &str, [median, fastest]: &[f64; 2], work: Work) -> String {
        let rate = self.rates.borrow_mut().of(name, work, fastest / 1e3);
        format!("{median:10.3} {fastest:10.3}  {rate}")
    }
}

/// A scalar whose gradient with respect to `y` is `upstream`, at no cost.
fn seed(y: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    y.apply_op1(Seed(upstream.clone()))
}

struct Seed(Tensor);

impl candle_core::CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(
        &self,
        _: &candle_core::CpuStorage,
        _: &candle_core::Layout,
    ) -> Result<(candle_core::CpuStorage, candle_core::Shape)> {
        Ok((candle_core::CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// Median and minimum of repeated runs.
fn time(mut f: impl FnMut() -> Result<()>) -> Result<[f64; 2]> {
    f()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < RUN_FOR || times.len() < 5 {
        let run = Instant::now();
        f()?;
        times.push(run.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok([times[times.len() / 2], times[0]])
}
