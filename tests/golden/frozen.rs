//! Frozen models use fewer multiplications: Winograd's convolution in the decoder, and few inputs
//! in the first block of the generator. Their results must agree with those of the same weights in
//! training, which the other golden tests compare with PyTorch. The size is the demo's, because the
//! golden files' decoder is too small for Winograd's tiles.

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

/// The demo's configuration with random parameters; with their initial values, all logits would be
/// zero.
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

/// The values of the images in 0..255, as they are written to files.
fn levels(images: &Tensor) -> Result<Vec<u8>> {
    Ok(rdpm::sample::to_rgb(images)?
        .iter()
        .flat_map(|image| image.as_raw().clone())
        .collect())
}

fn check(name: &str, frozen: &Tensor, plain: &Tensor) -> Result<()> {
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    let error = norm(&(frozen - plain)?)? / norm(plain)?;
    assert!(error < 1e-5, "{name}: {error:e}");
    assert!(error > 0.0, "{name}: computed as in training");
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
    let images = [frozen.1.decode(&sum)?, plain.1.decode(&sum)?];
    check("images", &images[0], &images[1])?;
    let [found, expected] = images.map(|images| levels(&images));
    let (found, expected) = (found?, expected?);
    let differences = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
    let off: Vec<u8> = differences.filter(|d| *d > 0).collect();
    assert!(off.iter().all(|d| *d == 1), "levels off by {off:?}");
    assert!(
        off.len() <= found.len() / 1000,
        "{} levels differ",
        off.len()
    );
    // The encoder is not approximated, because codes depend on its latents.
    let image = drawn(4, &[2, 32, 32, 3])?;
    let latents = |tokenizer: &Tokenizer| -> Result<Vec<f32>> {
        Ok(tokenizer.encode(&image)?.flatten_all()?.to_vec1()?)
    };
    assert!(latents(&frozen.1)? == latents(&plain.1)?, "latents");
    Ok(())
}
