//! Algorithm 2 with the noise and uniforms of the file: codes, and so z'_T, with and without
//! guidance.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rdpm::config::{CfgSchedule, Config};
use rdpm::error::Result;
use rdpm::model::{Generator, Tokenizer};
use rdpm::sample::{Draws, SampleOptions, Sampler};
use rdpm::store::Scope;
use serde::Deserialize;

use crate::fixture::Golden;

#[derive(Deserialize)]
struct Case {
    cfg: f64,
    cfg_schedule: CfgSchedule,
    tau: f64,
    gumbel: bool,
}

#[test]
fn samples_are_those_of_pytorch() -> Result<()> {
    let golden = Golden::open("sampler")?;
    let mut config: Config = golden.metadata("config")?;
    // Sampling uses only the tokenizer's quantizer.
    config.tokenizer.ch = 32;
    let classes = config.generator.classes.expect("the file says it");
    let scope = Scope::load(&golden.under("weights.generator"), &Device::Cpu);
    let generator = Generator::new(&config, classes, &scope)?;
    let scope = Scope::init(0, &Device::Cpu);
    let tokenizer = Tokenizer::new(&config, &scope)?;
    let params = scope.finish();
    for (name, tensor) in golden.under("weights.quantize") {
        let param = params.get(&format!("quantize.{name}"));
        param.expect("the quantizer's parameters").set(&tensor)?;
    }
    let sampler = Sampler::new(&generator, &tokenizer, &config, classes);
    let labels = golden.index("labels")?.to_vec1::<u32>()?;
    let (noise, uniform) = (golden.map("noise")?, golden.get("uniform"));
    let draws = Draws::Given {
        noise: &noise,
        uniform: &uniform,
    };
    for (name, case) in golden.metadata::<BTreeMap<String, Case>>("cases")? {
        let options = SampleOptions {
            cfg: case.cfg,
            cfg_schedule: case.cfg_schedule,
            temperature: 1.0 / case.tau,
            gumbel: case.gumbel,
            top_k: None,
            top_p: None,
        };
        let sums = sampler.latents(&labels, &draws, &options)?;
        // The increment of each step shows its codes.
        let codes = golden.index(&format!("{name}.codes"))?;
        let mut before = sums[0].zeros_like()?;
        for (t, sum) in sums.iter().enumerate() {
            let expected = tokenizer.quantizer.lookup(&codes.get(t)?)?;
            golden.check_against(&format!("{name}, step {t}"), &(sum - before)?, &expected)?;
            before = sum.clone();
        }
        golden.check_map(&format!("{name}.latents"), &Tensor::clone(&before))?;
    }
    Ok(())
}
