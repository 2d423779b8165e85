//! Encoder, quantizer, decoder, L_quant, the straight-through gradient and the adaptive weight.

use candle_core::Tensor;
use rdpm::config::{Config, Reduction};
use rdpm::error::Result;
use rdpm::model::{Tokenizer, losses, straight_through};
use rdpm::ops::global_norm;
use rdpm::ops::quantize::Noise;

use crate::fixture::Golden;

/// Without patches, and with patches of 2×2.
const FILES: [&str; 2] = ["tokenizer", "tokenizer_patch"];

fn for_each(f: impl Fn(&Golden, &Config) -> Result<()>) -> Result<()> {
    FILES.iter().try_for_each(|name| {
        let golden = Golden::open(name)?;
        f(&golden, &golden.config()?)
    })
}

#[test]
fn the_encoder_gives_the_latents_of_pytorch() -> Result<()> {
    for_each(|golden, config| {
        let (tokenizer, _) = golden.build(|scope| Tokenizer::new(config, scope))?;
        golden.check_map("v", &tokenizer.encode(&golden.map("x")?)?)
    })
}

#[test]
fn the_quantizer_gives_the_codes_and_sums_of_pytorch() -> Result<()> {
    for_each(|golden, config| {
        let (tokenizer, _) = golden.build(|scope| Tokenizer::new(config, scope))?;
        let (v, noise) = (golden.map("v")?, golden.map("noise")?);
        let quantized = tokenizer.quantizer.quantize(&v, &Noise::Given(&noise))?;
        golden.check_codes("codes", &quantized.codes)?;
        golden.check_map("sums", &quantized.sums)
    })
}

#[test]
fn the_decoder_gives_the_images_of_pytorch() -> Result<()> {
    for_each(|golden, config| {
        let (tokenizer, _) = golden.build(|scope| Tokenizer::new(config, scope))?;
        let sums = golden.map("sums")?;
        let last = sums.get(tokenizer.quantizer.steps())?;
        golden.check_map("decoded", &tokenizer.decode(&last)?)
    })
}

#[test]
fn the_quantization_loss_is_that_of_pytorch_by_weight_and_reduction() -> Result<()> {
    for_each(|golden, config| {
        let (v, noise) = (golden.map("v")?, golden.map("noise")?);
        for (weight, weighted) in [(true, "weighted"), (false, "plain")] {
            for (reduction, kind) in [(Reduction::Mean, "mean"), (Reduction::Sum, "sum")] {
                let mut config = config.clone();
                (config.quantizer.weight, config.quantizer.reduction) = (weight, reduction);
                let (tokenizer, _) = golden.build(|scope| Tokenizer::new(&config, scope))?;
                let quantizer = &tokenizer.quantizer;
                let quantized = quantizer.quantize(&v, &Noise::Given(&noise))?;
                let loss = quantizer.loss(&v, &quantized)?;
                golden.check(&format!("quant_loss.{weighted}.{kind}"), &loss)?;
            }
        }
        Ok(())
    })
}

/// The decoder's features, the image, and the loss that the file's gradients belong to.
fn forward(golden: &Golden, tokenizer: &Tokenizer) -> Result<(Tensor, Tensor, Tensor)> {
    let (x, noise) = (golden.map("x")?, golden.map("noise")?);
    let v = tokenizer.encode(&x)?;
    let quantized = tokenizer.quantizer.quantize(&v, &Noise::Given(&noise))?;
    let last = quantized.sums.get(tokenizer.quantizer.steps())?;
    let features = tokenizer.features(&straight_through(&v, &last)?)?;
    let image = tokenizer.output(&features)?;
    let reconstruction = losses::mean_squared_error(&image, &x)?;
    let loss = (reconstruction + tokenizer.quantizer.loss(&v, &quantized)?)?;
    Ok((features, image, loss))
}

#[test]
fn every_gradient_of_the_tokenizer_is_that_of_pytorch() -> Result<()> {
    for_each(|golden, config| {
        let (tokenizer, params) = golden.build(|scope| Tokenizer::new(config, scope))?;
        let (features, image, loss) = forward(golden, &tokenizer)?;
        golden.check_map("features", &features)?;
        golden.check_map("image", &image)?;
        golden.check("loss", &loss)?;
        golden.check_grads(&params, &loss.backward()?)
    })
}

#[test]
fn the_adaptive_weight_is_that_of_pytorch() -> Result<()> {
    for_each(|golden, config| {
        let (tokenizer, _) = golden.build(|scope| Tokenizer::new(config, scope))?;
        let (features, _, _) = forward(golden, &tokenizer)?;
        let norm = |name| -> Result<Tensor> {
            let grad = tokenizer.last_layer_grad(&features, &golden.map(name)?)?;
            Ok(global_norm([&grad])?)
        };
        let weight = losses::adaptive_weight(&norm("g_rec")?, &norm("g_adv")?, 1e4)?;
        golden.check_scalar("adaptive_weight", weight.to_scalar()?)
    })
}
