//! The GPU version: addresses in the kernel's argument.

use candle_core::{DType, Result, Tensor};

use crate::ops::cuda::{Gpu, Output, View};

/// The number of scalars that fit into a kernel argument.
const SCALARS: usize = 128;

/// As in `kernel.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Listed {
    value: u64,
    double: i64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct List {
    values: u64,
    count: i64,
    of: [Listed; SCALARS],
}

pub(super) fn serves(scalars: &[Tensor]) -> bool {
    let served = |t: &Tensor| {
        t.device().is_cuda() && t.elem_count() == 1 && matches!(t.dtype(), DType::F32 | DType::F64)
    };
    !scalars.is_empty() && scalars.iter().all(served)
}

/// [n] f64
pub(super) fn gathered(scalars: &[Tensor]) -> Result<Tensor> {
    let gpu = Gpu::of(scalars[0].device().as_cuda_device()?)?;
    let mut values = Output::<f64>::new(gpu.device(), scalars.len())?;
    for (i, some) in scalars.chunks(SCALARS).enumerate() {
        let mut list = List {
            values: values.view_mut().part(i * SCALARS, some.len()).address(),
            count: some.len() as i64,
            of: [Listed::default(); SCALARS],
        };
        for (listed, scalar) in list.of.iter_mut().zip(some) {
            *listed = match scalar.dtype() {
                DType::F64 => Listed {
                    value: View::<f64>::of(scalar)?.address(),
                    double: 1,
                },
                _ => Listed {
                    value: View::<f32>::of(scalar)?.address(),
                    double: 0,
                },
            };
        }
        let function = gpu.kernel("scalars", "gather_scalars", 0)?;
        let mut launch = gpu.launch(&function);
        launch.structure(&list);
        // SAFETY: a value of its type at each address, and `count` results.
        unsafe { launch.run((1, 1, 1), SCALARS as u32, 0)? };
    }
    Ok(values.tensor(scalars.len()))
}
