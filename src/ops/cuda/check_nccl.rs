//! Checks that this machine's NCCL has the functions that are used, and that what it sums and
//! gathers of one process stays as it is.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::compare::Row;
use super::nccl::{self, Communicator};
use super::{Buffer, Gpu, libraries};

/// Without NCCL on this machine a row that says so.
pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    if libraries::nccl().place.is_err() {
        return Ok(vec![row("NCCL is not on this machine: NOT checked", true)]);
    }
    with_one(gpu).map_err(candle_core::Error::wrap)
}

fn with_one(gpu: &Arc<Gpu>) -> crate::error::Result<Vec<Row>> {
    let library = nccl::library()?;
    let one = Communicator::new(gpu.stream(), library.unique_id()?, 0, 1)?;
    let values: Vec<f32> = (0..1001).map(|i| (i as f32).sin()).collect();
    let floats = Buffer::from_host(gpu, &values)?;
    let counts = Buffer::<u32>::from_host(gpu, &[1, 2, u32::MAX])?;
    one.sum(&[&floats], &[&counts])?;
    one.wait_own()?;
    one.wait()?;
    let in_place = floats.read()? == values && counts.read()? == [1, 2, u32::MAX];
    let there = Device::Cuda(gpu.device().clone());
    let tensor = Tensor::new(&values[..], &there)?;
    // One that is not contiguous, and one twice.
    let turned = tensor.narrow(0, 0, 1000)?.reshape((40, 25))?.t()?;
    let sums = one.sums(&[&tensor, &turned, &tensor])?;
    let all = one.gather(&tensor)?;
    one.wait()?;
    let same = sums[0].to_vec1::<f32>()? == values
        && sums[1].to_vec2::<f32>()? == turned.to_vec2::<f32>()?
        && sums[2].to_vec1::<f32>()? == values
        && all.to_vec2::<f32>()? == [values];
    one.check()?;
    one.finish()?;
    let other = Communicator::new(gpu.stream(), library.unique_id()?, 0, 1)?;
    other.abort();
    let ended = other.sum(&[&floats], &[]).is_err();
    Ok(vec![
        row(
            &format!("NCCL {}, one process: sums in place", library.version),
            in_place,
        ),
        row("sums of tensors, and values of all processes", same),
        row("nothing is summed after an end", ended),
    ])
}

fn row(name: &str, is_right: bool) -> Row {
    Row {
        name: name.into(),
        error: f64::from(u8::from(!is_right)),
        allowed: 0.0,
    }
}
