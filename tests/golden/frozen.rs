//! A model that is not trained any more takes fewer multiplications (Strassen's and Winograd's): within the golden tests'
//! bar of what the same weights give in training, which those tests hold against PyTorch. At the demo's size: the golden
//! files' models are too small for either.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rdpm::config::Config;
use rdpm::error::Result;
use rdpm::model::{Generator, Tokenizer};
use rdpm::rng::{Purpose, normal};
use rdpm::store::Scope;

const CLASSES: usize = 10;

fn drawn(index: u64, shape: &[usize]) -> Result<Tensor> {
    let x = normal(3, Purpose::Init, &[index], 0, shape, &Device::Cpu)?;
    Ok(x.squeeze(0)?)
}

/// The demo's configuration with every parameter random: at their start, logits are all zero.
fn weights() -> Result<(Config, BTreeMap<String, Tensor>)> {
    let config = Config::load(Some("demo"), &[])?;
    let scope = Scope::init(1, &Device::Cpu);
    Generator::new(&config, CLASSES, &scope.push("generator"))?;
    Tokenizer::new(&config, &scope.push("tokenizer"))?;
    let params = scope.finish();
    for (i, (_, var)) in params.iter().enumerate() {
        let noise = (drawn(i as u64, var.dims())? * 0.02)?;
        var.set(&(var.as_tensor() + noise)?)?;
    }
    Ok((config, params.tensors()))
}

fn check(name: &str, frozen: &Tensor, plain: &Tensor) -> Result<()> {
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    let error = norm(&(frozen - plain)?)? / norm(plain)?;
    assert!(error < 1e-5, "{name}: {error:e}");
    assert!(
        error > 0.0,
        "{name}: in as many multiplications as in training"
    );
    Ok(())
}

#[test]
fn frozen_models_give_what_they_give_in_training() -> Result<()> {
    let (config, tensors) = weights()?;
    let models = |scope: Scope| -> Result<(Generator, Tokenizer)> {
        Ok((
            Generator::new(&config, CLASSES, &scope.push("generator"))?,
            Tokenizer::new(&config, &scope.push("tokenizer"))?,
        ))
    };
    let plain = models(Scope::load(&tensors, &Device::Cpu))?;
    let frozen = models(Scope::load(&tensors, &Device::Cpu).frozen())?;
    let (noise, sum) = (drawn(1, &[2, 8, 8, 8])?, drawn(2, &[2, 8, 8, 8])?);
    let labels = Tensor::new(&[3u32, CLASSES as u32], &Device::Cpu)?;
    let t = Tensor::new(&[1u32, 7], &Device::Cpu)?;
    let logits = |generator: &Generator| -> Result<Tensor> {
        let condition = generator.condition(&labels, &t)?;
        Ok(generator.forward(&noise, &sum, &condition)?)
    };
    check("logits", &logits(&frozen.0)?, &logits(&plain.0)?)?;
    check("images", &frozen.1.decode(&sum)?, &plain.1.decode(&sum)?)?;
    // Codes are compared: the encoder takes no shortcut.
    let image = drawn(4, &[2, 32, 32, 3])?;
    let latents = |tokenizer: &Tokenizer| -> Result<Vec<f32>> {
        Ok(tokenizer.encode(&image)?.flatten_all()?.to_vec1()?)
    };
    assert!(latents(&frozen.1)? == latents(&plain.1)?, "latents");
    Ok(())
}
