//! LPIPS: its structure with narrow random weights, and the real network with the published
//! weights.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor, Var};
use rdpm::error::Result;
use rdpm::model::Lpips;
use rdpm::model::perceptual::WIDTHS;

use crate::fixture::Golden;

fn check(golden: &Golden, lpips: &Lpips) -> Result<()> {
    let x = Var::from_tensor(&golden.map("x")?)?;
    let distance = lpips.distance(&x, &golden.map("y")?)?;
    golden.check("distance", &distance)?;
    let grads = distance.backward()?;
    golden.check_map("grad", grads.get(&x).expect("it is a variable"))
}

#[test]
fn the_distance_and_its_gradient_are_those_of_pytorch() -> Result<()> {
    let golden = Golden::open("lpips")?;
    let (widths, weights) = (golden.metadata("widths")?, golden.under("weights"));
    check(
        &golden,
        &Lpips::new(&widths, &weights, &weights, &Device::Cpu)?,
    )
}

#[test]
fn each_image_of_several_has_the_distance_that_it_has_alone() -> Result<()> {
    let golden = Golden::open("lpips")?;
    let (widths, weights) = (golden.metadata("widths")?, golden.under("weights"));
    let lpips = Lpips::new(&widths, &weights, &weights, &Device::Cpu)?;
    let (x, y) = (golden.map("x")?, golden.map("y")?);
    // Three pairs that are all different.
    let [x, y] = [
        Tensor::cat(&[&x, &y, &x.affine(0.5, 0.1)?], 0)?,
        Tensor::cat(&[&y, &y.affine(-1.0, 0.0)?, &x], 0)?,
    ];
    let alone = (0..x.dim(0)?)
        .map(|i| {
            Ok(lpips
                .distance(&x.narrow(0, i, 1)?, &y.narrow(0, i, 1)?)?
                .to_scalar()?)
        })
        .collect::<Result<Vec<f32>>>()?;
    assert_eq!(lpips.distances(&x, &y)?, alone);
    for (i, distance) in alone.iter().enumerate() {
        assert!(
            *distance > 0.0 && !alone[..i].contains(distance),
            "{alone:?}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs RDPM_WEIGHTS, the folder that scripts/weights.sh makes"]
fn with_the_genuine_weights_it_is_lpips() -> Result<()> {
    let folder = PathBuf::from(std::env::var("RDPM_WEIGHTS").expect("RDPM_WEIGHTS is set"));
    let load = |name| -> Result<BTreeMap<String, Tensor>> {
        let tensors = candle_core::safetensors::load(folder.join(name), &Device::Cpu)?;
        Ok(tensors.into_iter().collect())
    };
    let vgg = load("vgg16_features_f16.safetensors")?;
    let heads = load("lpips_vgg_lin.safetensors")?;
    let lpips = Lpips::new(&WIDTHS, &vgg, &heads, &Device::Cpu)?;
    check(&Golden::open("lpips_genuine")?, &lpips)
}
