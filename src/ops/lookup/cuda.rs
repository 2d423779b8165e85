//! The gradient on a GPU: rows sorted by code, then summed without atomics. See `kernel.cu`.

use candle_core::{DType, Result, Tensor};

use crate::ops::cuda::{Buffer, Gpu, Output, View, launch};

const TILE: usize = 1024;
const CHUNK: usize = 128;

/// Maximum number of table rows: a code and a position in its tile share a word.
const ROWS: usize = (1 << 22) - 1;

pub(super) fn serves(table: &Tensor, dy: &Tensor) -> bool {
    dy.device().is_cuda() && dy.dtype() == DType::F32 && table.dims2().is_ok_and(|(k, _)| k <= ROWS)
}

/// dtable [K,d] from dy [R,d] and the rows' indices u32 [R].
pub(super) fn gradient(table: &Tensor, numbers: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(dy.device().as_cuda_device()?)?;
    let (k, d) = table.dims2()?;
    let (codes, dy) = (numbers.contiguous()?, dy.contiguous()?);
    let (codes, dy) = (View::<u32>::of(&codes)?, View::<f32>::of(&dy)?);
    let rows = codes.len();
    assert_eq!(dy.len(), rows * d);
    let mut dtable = Output::<f32>::new(gpu.device(), k * d)?;
    let (tiles, chunks) = (rows.div_ceil(TILE), rows.div_ceil(CHUNK));
    let counts = Buffer::<u32>::zeros(&gpu, tiles * k)?;
    let numbers = |len: usize| Output::<u32>::new(gpu.device(), len);
    let (mut ranks, mut order) = (numbers(rows)?, numbers(rows)?);
    let (mut totals, mut starts) = (numbers(k)?, numbers(k + 1)?);
    let mut parts = Output::<f32>::new(gpu.device(), chunks * 2 * d)?;
    let counted = counts.view();
    let of_tiles = (tiles as u32, 1, 1);
    let of_codes = (k.div_ceil(256) as u32, 1, 1);
    let of_chunks = (chunks.div_ceil(4) as u32, d.div_ceil(32) as u32, 1);
    let of_values = ((k * d).div_ceil(256) as u32, 1, 1);
    let [r, t, c, k, d] = [rows, tiles, chunks, k, d].map(|n| n as i32);
    // SAFETY: R codes, ranks and places, tiles·K counts, K totals, K + 1 starts; R·d of dy, K·d of
    // dtable, chunks·2·d partial sums. An index beyond the table is ignored.
    unsafe {
        launch!(gpu, "lookup", "rank", of_tiles, 1024, 0; codes, ranks.view_mut(), counted, r, k)?;
        launch!(gpu, "lookup", "scan_tiles", of_codes, 256, 0; counted, totals.view_mut(), t, k)?;
        launch!(gpu, "lookup", "scan_codes", (1, 1, 1), 1024, 0; totals.view(), starts.view_mut(), k)?;
        launch!(gpu, "lookup", "place", of_tiles, 1024, 0;
            codes, ranks.view(), counted, starts.view(), order.view_mut(), r, k)?;
        launch!(gpu, "lookup", "chunk_sums", of_chunks, 128, 0;
            codes, order.view(), starts.view(), dy, dtable.view_mut(), parts.view_mut(), c, k, d)?;
        launch!(gpu, "lookup", "join", of_values, 256, 0;
            starts.view(), parts.view(), dtable.view_mut(), k, d)?;
    }
    Ok(dtable.tensor(table.shape()))
}
