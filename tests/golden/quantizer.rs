//! Ten steps of recurrent quantization at odd sizes, for every schedule, with and without the
//! shared convolution.

use candle_core::{Device, Tensor};
use rdpm::config::{Reduction, ScheduleKind};
use rdpm::error::Result;
use rdpm::model::Quantizer;
use rdpm::ops::quantize::{Noise, quantization_loss};
use rdpm::store::Scope;

use crate::fixture::Golden;

fn for_each(f: impl Fn(&Golden, &str, &Quantizer) -> Result<()>) -> Result<()> {
    let golden = Golden::open("quantizer")?;
    let mut config = golden.config()?;
    let kinds = [
        (ScheduleKind::Pow, "pow"),
        (ScheduleKind::Linear, "linear"),
        (ScheduleKind::Sin, "sin"),
    ];
    for (kind, name) in kinds {
        for (bias, with) in [(true, "bias"), (false, "plain")] {
            (config.schedule.kind, config.quantizer.bias) = (kind, bias);
            let scope = Scope::load(&golden.under("weights"), &Device::Cpu);
            let dim = config.tokenizer.embed_dim;
            let quantizer = Quantizer::new(&config.quantizer, &config.schedule, dim, &scope)?;
            f(&golden, &format!("{name}.{with}"), &quantizer)?;
        }
    }
    Ok(())
}

#[test]
fn the_schedules_are_those_of_pytorch() -> Result<()> {
    for_each(|golden, case, quantizer| {
        let schedule = &quantizer.schedule;
        for (name, values) in [("alpha", &schedule.alpha), ("beta", &schedule.beta)] {
            let values = Tensor::new(values.as_slice(), &Device::Cpu)?;
            golden.check(&format!("{case}.{name}"), &values)?;
        }
        Ok(())
    })
}

#[test]
fn ten_steps_give_the_codes_and_sums_of_pytorch() -> Result<()> {
    for_each(|golden, case, quantizer| {
        let noise = golden.map("noise")?;
        let quantized = quantizer.quantize(&golden.map("v")?, &Noise::Given(&noise))?;
        golden.check_codes(&format!("{case}.codes"), &quantized.codes)?;
        golden.check_map(&format!("{case}.sums"), &quantized.sums)
    })
}

#[test]
fn an_example_is_what_all_steps_saw_at_its_own() -> Result<()> {
    for_each(|golden, case, quantizer| {
        let (v, noise) = (golden.map("v")?, golden.map("noise")?);
        let codes = golden.index(&format!("{case}.codes"))?;
        let sums = golden.map(&format!("{case}.sums"))?;
        for t in [[1, 10], [4, 7]] {
            let examples = quantizer.quantize_until(&v, &Noise::Given(&noise), &t)?;
            for (image, t) in t.iter().map(|&t| t as usize).enumerate() {
                let at = |stack: &Tensor| stack.get(t - 1)?.get(image)?.flatten_all();
                let found = |tensor: &Tensor| tensor.get(image)?.flatten_all();
                assert_eq!(
                    found(&examples.codes)?.to_vec1::<u32>()?,
                    at(&codes)?.to_vec1::<u32>()?,
                    "{case}: image {image}, t = {t}"
                );
                assert_eq!(
                    found(&examples.noise)?.to_vec1::<f32>()?,
                    at(&noise)?.to_vec1::<f32>()?
                );
                let difference = (found(&examples.sum)? - at(&sums)?)?.abs()?.max_all()?;
                assert!(difference.to_scalar::<f32>()? < 1e-5);
            }
        }
        Ok(())
    })
}

#[test]
fn both_halves_of_the_loss_are_those_of_pytorch_at_every_step() -> Result<()> {
    for_each(|golden, case, quantizer| {
        let (v, noise) = (golden.map("v")?, golden.map("noise")?);
        let quantized = quantizer.quantize(&v, &Noise::Given(&noise))?;
        let lookup = quantizer.lookup(&quantized.codes)?;
        // A weight of 1 at step t and 0 elsewhere leaves book_t + δ·commit_t.
        let term = |t: usize, delta| -> candle_core::Result<Tensor> {
            let mut gamma = vec![0.0; quantizer.steps()];
            gamma[t] = 1.0;
            let (schedule, sum) = (&quantizer.schedule, Reduction::Sum);
            quantization_loss(&v, &lookup, &quantized, schedule, &gamma, delta, sum)
        };
        let terms = |delta| -> candle_core::Result<Tensor> {
            let each: Vec<_> = (0..quantizer.steps())
                .map(|t| term(t, delta))
                .collect::<candle_core::Result<_>>()?;
            Tensor::stack(&each, 0)
        };
        let book = golden.get(&format!("{case}.book"));
        let both = (&book + (golden.get(&format!("{case}.commit")) * 0.25)?)?;
        golden.check_against(&format!("{case}.book"), &terms(0.0)?, &book)?;
        golden.check_against(&format!("{case}.book+commit"), &terms(0.25)?, &both)
    })
}
