//! Checks the kernels of the rectifiers and of SiLU at sizes that are and are not multiples of
//! eight.

use candle_core::Result;

use super::{leaky_relu, relu};
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};
use crate::ops::silu;

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [&[1][..], &[3, 5, 7], &[2, 64, 33, 40], &[5, 1000, 999]] {
        let x = [random(1, shape)?];
        let mut of =
            |name: &str, f: &dyn Fn(&candle_core::Tensor) -> Result<candle_core::Tensor>| {
                let name = format!("{name} {shape:?}");
                rows.extend(compare(gpu, &name, &x, &[], |maps, _| f(&maps[0]))?);
                Ok::<_, candle_core::Error>(())
            };
        of("relu", &relu)?;
        of("leaky_relu", &|x| leaky_relu(x, 0.2))?;
        of("silu", &silu)?;
    }
    Ok(rows)
}
