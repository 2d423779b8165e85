//! The generator's logits for every step of encoded images, through the library.
//!
//!     cargo run --release --example logits MODEL CODES OUT
//!
//! MODEL is a bundle or a run, CODES what `rdpm encode --save-noise` wrote. OUT (safetensors) holds
//! `logits`
//! [N,T,h·w,K]: what the generator says of step t when it sees ε_t, z'_{t−1} and the label; images
//! without labels take one class after the other. `scripts/pytorch_interop.py` compares them with
//! PyTorch's.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rdpm::error::{Result, usage};
use rdpm::sample::Pretrained;
use rdpm::store::codes::Codes;
use rdpm::store::safetensors;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, codes, out] = args.as_slice() else {
        return Err(usage("three arguments are needed", "MODEL CODES OUT"));
    };
    let model = Pretrained::open(Some(Path::new(model)), &Device::Cpu)?;
    let codes = Codes::read(Path::new(codes))?;
    let logits = logits(&model, &codes)?;
    let tensors = BTreeMap::from([("logits".to_string(), logits)]);
    safetensors::write(Path::new(out), &tensors, &BTreeMap::new())
}

fn logits(model: &Pretrained, codes: &Codes) -> Result<Tensor> {
    let generator = model.generator()?;
    let Some(noise) = &codes.noise else {
        return Err(usage(
            "the codes come without noise",
            "encode with --save-noise",
        ));
    };
    let (steps, images, ..) = codes.codes.dims4()?;
    let labels: Vec<u32> = match codes.labels.is_empty() {
        true => (0..images)
            .map(|i| (i % model.classes.len()) as u32)
            .collect(),
        false => codes.labels.clone(),
    };
    let labels = Tensor::new(labels, &Device::Cpu)?;
    let mut sum = noise.get(0)?.zeros_like()?; // z'_0 [N,h,w,d]
    let mut all = Vec::new();
    for t in 0..steps {
        let number = Tensor::full(t as u32 + 1, images, &Device::Cpu)?;
        let condition = generator.condition(&labels, &number)?;
        all.push(generator.forward(&noise.get(t)?, &sum, &condition)?); // [N,h·w,K]
        sum = (sum + model.tokenizer.quantizer.lookup(&codes.codes.get(t)?)?)?;
    }
    Ok(Tensor::stack(&all, 1)?)
}
