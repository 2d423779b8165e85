//! The GPU version: the tensors are listed in the kernel's argument, a block each.

use candle_core::Result;

use super::Running;
use crate::ops::cuda::{Gpu, View, ViewMut};

/// The number of tensors that fit into a kernel argument.
const TENSORS: usize = 64;

/// As in `kernel.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Listed {
    average: u64,
    now: u64,
    count: i64,
    keep: f32,
    rate: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct List {
    of: [Listed; TENSORS],
}

pub(super) fn update(all: &[Running]) -> Result<()> {
    for some in all.chunks(TENSORS) {
        let gpu = Gpu::of(some[0].average.device().as_cuda_device()?)?;
        let mut list = List {
            of: [Listed::default(); TENSORS],
        };
        // Values that had to be made contiguous must live until the launch.
        let mut made = Vec::with_capacity(some.len());
        for (listed, one) in list.of.iter_mut().zip(some) {
            let now = one.now.map(|now| now.contiguous()).transpose()?;
            let average = ViewMut::<f32>::variable(one.average)?;
            *listed = Listed {
                average: average.address(),
                now: match &now {
                    Some(now) => View::<f32>::of(now)?.address(),
                    None => 0,
                },
                count: average.len() as i64,
                keep: one.keep as f32,
                rate: one.rate as f32,
            };
            made.push(now);
        }
        let function = gpu.kernel("running_average", "running_average", 0)?;
        let mut launch = gpu.launch(&function);
        launch.structure(&list);
        // SAFETY: new values have the shapes of their averages, which was checked; a block for
        // each.
        unsafe { launch.run((some.len() as u32, 1, 1), 256, 0)? };
    }
    Ok(())
}
