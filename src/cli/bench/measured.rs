//! The times of some work on the chosen device, and the FLOP that it executed, held against what
//! the device can do.

use std::time::Instant;

use candle_core::Device;
use serde_json::{Value, json};

use super::{Judged, spread};
use crate::cli::Context;
use crate::error::{Result, hinted};
use crate::ops::flop;

/// How far a rate may exceed the GPU's measured best, since clocks change.
const SLACK: f64 = 1.1;

pub struct Measured {
    /// Median, least and most milliseconds.
    pub ms: [f64; 3],
    /// Of one run.
    pub flop: f64,
    pub place: String,
    name: &'static str,
    judged: Judged,
    /// FLOP/s of a large bf16 matmul, on a GPU.
    best: Option<f64>,
}

impl Measured {
    /// Runs `work` once for the FLOP that it executes, then `repeats` times for its times: by the
    /// GPU's clock on a GPU.
    pub fn of(
        (device, context): (&Device, &Context),
        name: &'static str,
        repeats: u32,
        work: impl Fn() -> candle_core::Result<()>,
    ) -> Result<Self> {
        let before = flop::executed();
        work()?;
        let flop = flop::executed() - before;
        Self::of_flop((device, context), name, repeats, flop, work)
    }

    /// The same of work that executes `flop`.
    pub fn of_flop(
        (device, context): (&Device, &Context),
        name: &'static str,
        repeats: u32,
        flop: f64,
        work: impl Fn() -> candle_core::Result<()>,
    ) -> Result<Self> {
        let (milliseconds, place, best) = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                use super::clock::{Ceilings, times};
                let gpu = crate::ops::cuda::Gpu::of(cuda)?;
                let best = Ceilings::measure(&gpu)?.flop;
                let times = times(&gpu, repeats as usize, work)?;
                (times, gpu.description()?, Some(best))
            }
            _ => {
                let run = |_| {
                    let begin = Instant::now();
                    work()?;
                    Ok(begin.elapsed().as_secs_f64() * 1e3)
                };
                let times = (0..repeats).map(run).collect::<Result<Vec<f64>>>()?;
                (times, format!("{} CPU threads", context.threads), None)
            }
        };
        let ms = spread(&milliseconds);
        Ok(Self {
            judged: Judged::new(device, name, flop, ms[1]),
            ms,
            flop,
            place,
            name,
            best,
        })
    }

    pub fn teraflops(&self) -> f64 {
        self.flop / self.ms[0] / 1e9
    }

    /// A JSON line: what `sizes` says, an object with the batch size, and the figures.
    pub fn line(&self, sizes: Value) -> String {
        let mut line = sizes;
        let batch = line["batch_size"].as_f64().unwrap_or_default();
        line["work"] = json!(self.name);
        line["ms"] = json!(self.ms[0]);
        line["ms_least"] = json!(self.ms[1]);
        line["ms_most"] = json!(self.ms[2]);
        line["images_per_second"] = json!(batch / self.ms[0] * 1e3);
        line["teraflop_per_second"] = json!(self.teraflops());
        line["device"] = json!(self.place);
        format!("{line}\n")
    }

    /// A sentence about `batch` images, called `sizes`.
    pub fn sentence(&self, sizes: &str, batch: usize) -> String {
        let [median, least, most] = self.ms;
        let share = self.best.map_or(String::new(), |best| {
            let share = 100.0 * self.teraflops() * 1e12 / best;
            format!(
                ", {share:.0} % of a large matmul's {:.0} TFLOP/s",
                best / 1e12
            )
        });
        format!(
            "{}, {sizes}, on {}: median {median:.2} ms ({least:.2} to {most:.2}), {:.1} images/s, \
             {:.3} TFLOP/s executed{share}{}\n",
            self.name,
            self.place,
            batch as f64 / median * 1e3,
            self.teraflops(),
            self.judged.told
        )
    }

    /// Errors: the time implies a rate above what the device can do.
    pub fn verdict(self) -> Result<()> {
        if let Some(best) = self.best
            && self.flop / self.ms[1] * 1e3 > SLACK * best
        {
            return Err(hinted(
                format!(
                    "{}: {:.0} TFLOP/s, but this GPU reaches {:.0} in a large matmul",
                    self.name,
                    self.flop / self.ms[1] / 1e9,
                    best / 1e12
                ),
                "too little was timed, or too much was counted: please report it with this line",
            ));
        }
        self.judged.verdict()
    }
}
