//! PatchGAN with BatchNorm in training, the hinge losses, the running statistics.

use candle_core::{Device, Var};
use rdpm::error::Result;
use rdpm::model::{Discriminator, losses};
use rdpm::store::{Params, Scope};

use crate::fixture::Golden;

fn make(golden: &Golden, scope: &Scope, buffers: &Scope) -> Result<Discriminator> {
    let (width, layers) = (golden.metadata("width")?, golden.metadata("layers")?);
    Ok(Discriminator::new(width, layers, scope, buffers)?)
}

fn build(golden: &Golden) -> Result<(Discriminator, Params, Params)> {
    let (scope, buffers) = (Scope::init(0, &Device::Cpu), Scope::init(0, &Device::Cpu));
    let discriminator = make(golden, &scope, &buffers)?;
    let (params, buffers) = (scope.finish(), buffers.finish());
    let (given, kept) = golden
        .under("weights")
        .into_iter()
        .partition(|(name, _)| params.get(name).is_some());
    params.assign(&given)?;
    buffers.assign(&kept)?;
    Ok((discriminator, params, buffers))
}

#[test]
fn logits_and_hinge_loss_and_every_gradient_are_those_of_pytorch() -> Result<()> {
    let golden = Golden::open("discriminator")?;
    let (discriminator, params, _) = build(&golden)?;
    let (real, _) = discriminator.forward(&golden.map("x")?)?;
    let (fake, _) = discriminator.forward(&golden.map("y")?)?;
    golden.check_map("real", &real)?;
    golden.check_map("fake", &fake)?;
    let loss = losses::hinge_discriminator(&real, &fake)?;
    golden.check("loss", &loss)?;
    golden.check_grads(&params, &loss.backward()?)
}

#[test]
fn a_frozen_discriminator_gives_the_gradient_at_the_image_and_no_other() -> Result<()> {
    let golden = Golden::open("discriminator")?;
    let (_, params, buffers) = build(&golden)?;
    let load = |params: &Params| Scope::load(&params.tensors(), &Device::Cpu);
    let frozen = make(&golden, &load(&params), &load(&buffers))?;
    let image = Var::from_tensor(&golden.map("y")?)?;
    let loss = losses::hinge_generator(&frozen.forward(&image)?.0)?;
    golden.check("generator_loss", &loss)?;
    let grads = loss.backward()?;
    golden.check_map("image_grad", grads.get(&image).expect("it is a variable"))?;
    assert!(params.iter().all(|(_, var)| grads.get(var).is_none()));
    Ok(())
}

#[test]
fn the_running_statistics_move_as_in_pytorch() -> Result<()> {
    let golden = Golden::open("discriminator")?;
    let (discriminator, _, buffers) = build(&golden)?;
    for images in ["x", "y"] {
        let (_, statistics) = discriminator.forward(&golden.map(images)?)?;
        discriminator.keep(&statistics)?;
    }
    let after = golden.under("after");
    assert_eq!(after.len(), buffers.len());
    for (name, var) in buffers.iter() {
        golden.check_against(name, var.as_tensor(), &after[name])?;
    }
    Ok(())
}
