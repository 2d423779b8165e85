//! Checks the GPU's totals and fading counts over several batches against counting on the host.

use candle_core::{Device, Result, Tensor};

use crate::ops::code_counts::CodeCounter;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::Row;
use crate::train::dead_codes::{DECAY, DeadCodes};
use crate::train::usage::{Usage, choices};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let there = Device::Cuda(gpu.device().clone());
    let mut rows = Vec::new();
    for (steps, size, each) in [(1, 7, 5), (3, 4096, 1000), (10, 300, 37)] {
        let mut counter = CodeCounter::new(gpu.device(), steps, size, DECAY)?;
        let (mut usage, mut dead) = (Usage::new(steps, size), DeadCodes::new(size));
        for batch in 0..4u32 {
            let code = |i: u32| (i * 7919 + batch * 31) % size as u32 / (1 + i % 3);
            let codes: Vec<u32> = (0..(steps * each) as u32).map(code).collect();
            let codes = Tensor::from_vec(codes, (steps, 1, each, 1), &Device::Cpu)?;
            let first = codes.narrow(2, 0, each / 2)?.contiguous()?;
            let last = codes.narrow(2, each / 2, each - each / 2)?.contiguous()?;
            let counted = choices([&first, &last], steps, size)?;
            usage.add(&counted);
            dead.count(&counted);
            let parts = [&first.to_device(&there)?, &last.to_device(&there)?];
            counter
                .count(parts, 1, |_| Ok(()))
                .map_err(candle_core::Error::wrap)?;
        }
        let mut found = Usage::new(steps, size);
        found.add(&counter.totals()?);
        let same = found.tensor()?.to_vec2::<i64>()? == usage.tensor()?.to_vec2::<i64>()?
            && counter.faded()? == dead.tensor()?.to_vec1::<f32>()?;
        rows.push(Row {
            name: format!("{steps}×{each} choices of {size} codes: the host's counts"),
            error: f64::from(u8::from(!same)),
            allowed: 0.0,
        });
    }
    Ok(rows)
}
