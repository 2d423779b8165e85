//! A network of a sixteenth of the widths, with random weights; scripts/compare_fid.py checks the
//! real one.

use super::layers::{BATCH_NORM_EPS, Builder, Windows};
use super::*;
use crate::error::report;
use crate::ops::Padding;
use crate::rng::{Purpose, Stream};

const DIVISOR: usize = 16;

const ALL: [Output; 6] = [
    Output::Logits,
    Output::Pool64,
    Output::Spatial,
    Output::Pool2048,
    Output::Pool192,
    Output::Pool768,
];

fn weights() -> Result<BTreeMap<String, Tensor>> {
    let mut shapes = Inception::shapes(DIVISOR)?;
    shapes.insert("fc.weight".into(), (10, 2048 / DIVISOR).into());
    let mut tensors = BTreeMap::new();
    for (i, (name, shape)) in shapes.into_iter().enumerate() {
        let mut values = vec![0f32; shape.elem_count()];
        Stream::new(1, Purpose::Init, i as u64, 0).fill_normal(&mut values);
        let fan_in = shape.dims()[1..].iter().product::<usize>().max(1);
        for x in &mut values {
            *x = match name.rsplit('.').next() {
                Some("running_var") => 0.5 + x.abs(),
                Some("weight") if shape.rank() == 1 => 1.0 + 0.1 * *x,
                Some("weight") => *x * (2.0 / fan_in as f32).sqrt(),
                _ => 0.1 * *x,
            };
        }
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(tensors)
}

fn network(weights: &BTreeMap<String, Tensor>, outputs: &[Output]) -> error::Result<Inception> {
    let preprocess = Preprocess::default();
    let hash = String::new();
    Inception::new(weights, DIVISOR, outputs, preprocess, hash, &Device::Cpu)
}

fn pictures(count: u32) -> Vec<RgbImage> {
    let pixel = |n: u32, x: u32, y: u32| [(x * 9 + n * 40) as u8, (y * 7) as u8, (x * y + n) as u8];
    (0..count)
        .map(|n| RgbImage::from_fn(20 + n, 24, |x, y| image::Rgb(pixel(n, x, y))))
        .collect()
}

#[test]
fn every_output_is_given_in_the_order_asked_for_whatever_the_batch() -> error::Result<()> {
    let network = network(&weights()?, &ALL)?;
    let pictures = pictures(3);
    let together = network.features(&pictures)?;
    let widths: Vec<usize> = together.iter().map(|rows| rows.width).collect();
    assert_eq!(widths, [10, 4, 2023, 128, 12, 48]);
    let expected: Vec<usize> = network.taps().iter().map(|tap| tap.width).collect();
    assert_eq!(widths, expected);
    for (i, picture) in pictures.iter().enumerate() {
        let alone = network.features(std::slice::from_ref(picture))?;
        for (alone, together) in alone.iter().zip(&together) {
            assert!(alone.values.iter().any(|x| *x != 0.0));
            assert_eq!(Some(&alone.values[..]), together.iter().nth(i));
        }
    }
    Ok(())
}

#[test]
fn a_shallow_output_is_the_same_without_the_deep_ones() -> error::Result<()> {
    let weights = weights()?;
    let pictures = pictures(1);
    let all = network(&weights, &ALL)?.features(&pictures)?;
    for (output, expected) in ALL.iter().zip(all) {
        let alone = network(&weights, &[*output])?.features(&pictures)?;
        assert_eq!(alone, [expected], "{}", output.name());
    }
    Ok(())
}

#[test]
fn batch_norm_is_in_the_convolution() -> Result<()> {
    let weights = weights()?;
    let scope = Scope::load(&weights, &Device::Cpu);
    let builder = Builder {
        scope: &scope,
        divisor: DIVISOR,
    };
    let windows = Windows::Valid { stride: 2 };
    let folded = builder.convolution("Conv2d_1a_3x3", (3, 3), (3, 32), windows)?;
    let of = |name: &str| &weights[&format!("Conv2d_1a_3x3.{name}")];
    let x = Preprocess::Adm
        .apply(&pictures(1))
        .map_err(candle_core::Error::wrap)?;
    let y = ops::conv2d(&x, of("conv.weight"), None, 2, Padding::same(0))?;
    let y = y.broadcast_sub(of("bn.running_mean"))?;
    let y = y.broadcast_div(&(of("bn.running_var") + BATCH_NORM_EPS)?.sqrt()?)?;
    let y = y
        .broadcast_mul(of("bn.weight"))?
        .broadcast_add(of("bn.bias"))?;
    let difference = (folded.forward(&x)? - y.relu()?)?.abs()?.max_all()?;
    assert!(difference.to_scalar::<f32>()? < 1e-5);
    Ok(())
}

#[test]
fn without_fc_everything_but_the_inception_score_is_given() -> error::Result<()> {
    let mut weights = weights()?;
    weights.remove("fc.weight");
    let error = network(&weights, &ALL).err().map(|e| report(&e).0);
    let error = error.expect("logits need fc");
    assert!(
        error.contains("no `fc.weight`") && error.contains("--metrics"),
        "{error}"
    );
    network(&weights, &[Output::Pool2048, Output::Spatial])?;
    Ok(())
}

#[test]
fn weights_of_another_network_are_refused() -> Result<()> {
    let mut weights = weights()?;
    weights.remove("Mixed_6d.branch7x7_2.conv.weight");
    let error = network(&weights, &[Output::Pool2048])
        .err()
        .map(|e| e.to_string());
    let error = error.expect("a tensor is missing");
    assert!(
        error.contains("Mixed_6d.branch7x7_2.conv.weight"),
        "{error}"
    );
    // Tensors of unused layers are not requested.
    assert!(network(&weights, &[Output::Pool192]).is_ok());
    Ok(())
}
