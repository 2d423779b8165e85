//! `rdpm bench inception`: the features of FID's network with random weights, from images that are
//! resized already.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::measured::Measured;
use crate::cli::{Context, print};
use crate::error::Result;
use crate::metrics::{Inception, Output, Preprocess, Rows};
use crate::rng::{Purpose, Stream, normal};

/// Time FID's Inception-v3: images of 299×299 to 2048 features
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images per batch
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Compute in f32 instead of f16, on a GPU
    #[arg(long)]
    f32: bool,
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
    let hash = String::new();
    let network = Inception::new(&weights, 1, outputs, preprocess, hash, &device)?;
    let images: Vec<u64> = (0..u64::from(args.batch_size)).collect();
    let shape = [299, 299, 3];
    let x = normal(1, Purpose::Noise, &images, 1, &shape, &Device::Cpu)?;
    let x = (x * 0.5)?.clamp(-1f32, 1f32)?.to_device(&device)?;
    let few = x.narrow(0, 0, images.len().min(COMPARED))?;
    let exact = network.forward(&few)?;
    let network = match args.f32 {
        true => network,
        false => network.for_inference()?,
    };
    let errors = errors(&network.forward(&few)?, &exact);
    let measured = Measured::of((&device, context), "inception", args.repeats, || {
        network.forward(&x).map(|_| ())
    })?;
    let batch = args.batch_size as usize;
    print(&match args.json {
        true => {
            let [mean, most] = errors;
            let sizes =
                json!({ "batch_size": batch, "f32": args.f32, "error": mean, "error_most": most });
            measured.line(sizes)
        }
        false => {
            let [mean, most] = errors;
            let sizes = format!(
                "{batch} images of 299×299, features {mean:.1e} from f32's, {most:.1e} at most"
            );
            measured.sentence(&sizes, batch)
        }
    })?;
    measured.verdict()
}

/// Images whose features are compared with those in f32.
const COMPARED: usize = 16;

/// ‖found − exact‖ / ‖exact‖ of the images' features: the mean, and the most.
fn errors(found: &[Rows], exact: &[Rows]) -> [f64; 2] {
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        let squares = values.map(|x| f64::from(x) * f64::from(x));
        squares.sum::<f64>().sqrt()
    };
    let (mut sum, mut most, mut count) = (0.0, 0f64, 0);
    for (found, exact) in found.iter().zip(exact) {
        for (found, exact) in found.iter().zip(exact.iter()) {
            let difference = norm(&mut found.iter().zip(exact).map(|(f, e)| f - e));
            let error = difference / norm(&mut exact.iter().copied());
            sum += error;
            most = most.max(error);
            count += 1;
        }
    }
    [sum / f64::from(count.max(1)), most]
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
