//! `rdpm bench inception`: the features of FID's network with random weights, from images that are
//! resized already.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::measured::Measured;
use crate::cli::{Context, print};
use crate::error::Result;
use crate::metrics::inception::{Inception, Output};
use crate::metrics::resize::Preprocess;
use crate::rng::{Purpose, Stream, normal};

/// Time FID's Inception-v3: images of 299×299 to 2048 features
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images per batch
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Number of timed runs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Print a JSON line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let device = context.device()?;
    let (outputs, preprocess) = (&[Output::Pool2048], Preprocess::default());
    let weights = weights()?;
    let network = Inception::new(&weights, 1, outputs, preprocess, String::new(), &device)?;
    let images: Vec<u64> = (0..u64::from(args.batch_size)).collect();
    let shape = [299, 299, 3];
    let x = normal(1, Purpose::Noise, &images, 1, &shape, &Device::Cpu)?;
    let x = (x * 0.5)?.clamp(-1f32, 1f32)?.to_device(&device)?;
    let measured = Measured::of((&device, context), "inception", args.repeats, || {
        network.forward(&x).map(|_| ())
    })?;
    let batch = args.batch_size as usize;
    print(&match args.json {
        true => measured.line(json!({ "batch_size": batch })),
        false => measured.sentence(&format!("{batch} images of 299×299"), batch),
    })?;
    measured.verdict()
}

/// Random weights whose activations keep their magnitude from layer to layer.
fn weights() -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (i, (name, shape)) in Inception::shapes(1)?.into_iter().enumerate() {
        let mut values = vec![0f32; shape.elem_count()];
        Stream::new(1, Purpose::Init, i as u64, 0).fill_normal(&mut values);
        let fan_in = shape.dims()[1..].iter().product::<usize>().max(1);
        let std = (2.0 / fan_in as f32).sqrt();
        for x in &mut values {
            *x = match name.rsplit('.').next() {
                Some("running_var") => 1.0,
                Some("weight") if shape.rank() == 1 => 1.0,
                Some("weight") => *x * std,
                _ => 0.0,
            };
        }
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(tensors)
}
