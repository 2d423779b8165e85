//! Parallel loops over the rows of a matrix, in blocks whose size depends on the row width alone.
//!
//! Sums over rows are computed block by block and added in the order of the blocks, so that results
//! are bit-identical for any number of threads.
//!
//! What is done with a block is passed by reference to a trait object, not as a type of its own:
//! one call a block costs nothing, and the parallel loops are compiled once instead of for each of
//! forty operations.

use super::simd;
use rayon::prelude::*;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

thread_local! {
    static SERIAL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with all operations on this thread only, for work in which every thread has its own
/// part. The blocks are the same, and so are the bits.
pub fn serially<R>(f: impl FnOnce() -> R) -> R {
    /// Restores the previous value, also if `f` panics.
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            SERIAL.set(self.0);
        }
    }
    let _reset = Reset(SERIAL.replace(true));
    f()
}

/// Whether this thread works alone, inside [`serially`].
pub fn is_serial() -> bool {
    SERIAL.get()
}

/// Elements per block: a few microseconds of work that fit in the L1 cache.
const ELEMENTS: usize = 16 * 1024;

/// Row width for data without rows.
const ROW: usize = 1024;

/// Rows per block. Their sums are f32; up to 256 of them are accurate to 1e-6.
fn rows(width: usize) -> usize {
    (ELEMENTS / width.max(1)).clamp(1, 256)
}

/// Fills `out`, rows of `width`; `f` gets the index of a block's first row and the block.
pub(super) fn fill(out: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let rows = rows(width);
    if out.len() <= rows * width {
        return f(0, out);
    }
    if is_serial() {
        let blocks = out.chunks_mut(rows * width).enumerate();
        return blocks.for_each(|(i, block)| f(i * rows, block));
    }
    out.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(i, block)| f(i * rows, block));
}

/// Sums of `sums` columns over `count` rows; `f` adds those of a range of rows to its slice.
pub(super) fn sum(
    count: usize,
    width: usize,
    sums: usize,
    f: &(dyn Fn(Range<usize>, &mut [f32]) + Sync),
) -> Vec<f64> {
    let rows = rows(width);
    let block = |i: usize| {
        let mut partial = vec![0f32; sums];
        f(i * rows..count.min((i + 1) * rows), &mut partial);
        partial
    };
    match count.div_ceil(rows) {
        1 => in_order(sums, [block(0)]),
        blocks if is_serial() => in_order(sums, (0..blocks).map(block)),
        blocks => in_order(
            sums,
            (0..blocks).into_par_iter().map(block).collect::<Vec<_>>(),
        ),
    }
}

/// `f` of every row index, for rows of `width`.
pub(super) fn map<R: Send>(count: usize, width: usize, f: &(dyn Fn(usize) -> R + Sync)) -> Vec<R> {
    let rows = rows(width);
    if count <= rows || is_serial() {
        return (0..count).map(f).collect();
    }
    (0..count)
        .into_par_iter()
        .with_min_len(rows)
        .map(f)
        .collect()
}

/// Of a block's first row, the block, and the slice to add its sums to.
type Summing<'a> = &'a (dyn Fn(usize, &mut [f32], &mut [f32]) + Sync);

/// [`fill`] and [`sum`] in one pass; `f` gets a block's first row, the block, and the slice to add
/// its sums to.
pub(super) fn fill_and_sum(out: &mut [f32], width: usize, sums: usize, f: Summing) -> Vec<f64> {
    let rows = rows(width);
    let block = |(i, block): (usize, &mut [f32])| {
        let mut partial = vec![0f32; sums];
        f(i * rows, block, &mut partial);
        partial
    };
    if out.len() <= rows * width {
        return in_order(sums, [block((0, out))]);
    }
    if is_serial() {
        return in_order(sums, out.chunks_mut(rows * width).enumerate().map(block));
    }
    let blocks = out.par_chunks_mut(rows * width).enumerate();
    in_order(sums, blocks.map(block).collect::<Vec<_>>())
}

/// A new matrix of `len` elements in rows of `width`; every block is zeroed and then passed to `f`
/// as in [`fill`].
pub(super) fn filled(len: usize, width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Vec<f32> {
    let rows = rows(width);
    create(len, rows * width, &|i, block| f(i * rows, block)).0
}

/// `f` of every element; write it as `#[inline(always)] |x| ..`, as for [`simd::vectorized`].
pub(super) fn each(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    filled(x.len(), ROW, &|row, y| {
        let x = &x[row * ROW..][..y.len()];
        simd::vectorized(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = f(x);
                }
            },
        )
    })
}

/// Like [`each`], for two vectors of equal length.
pub(super) fn each_pair(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    filled(a.len(), ROW, &|row, y| {
        let range = row * ROW..row * ROW + y.len();
        let (a, b) = (&a[range.clone()], &b[range]);
        simd::vectorized(
            #[inline(always)]
            || {
                for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                    *y = f(a, b);
                }
            },
        )
    })
}

/// [`filled`] with the sums of [`fill_and_sum`].
pub(super) fn filled_and_summed(
    len: usize,
    width: usize,
    sums: usize,
    f: Summing,
) -> (Vec<f32>, Vec<f64>) {
    let rows = rows(width);
    let (values, partials) = create(len, rows * width, &|i, block| {
        let mut partial = vec![0f32; sums];
        f(i * rows, block, &mut partial);
        partial
    });
    (values, in_order(sums, partials))
}

/// New images of `image` elements each, zeroed and then passed to `f` with their index; also
/// returns its results in order.
pub(super) fn images<R: Send>(
    len: usize,
    image: usize,
    f: &(dyn Fn(usize, &mut [f32]) -> R + Sync),
) -> (Vec<f32>, Vec<R>) {
    create(len, image, f)
}

/// A vector created in chunks, in parallel unless there is too little work. A chunk is zeroed by
/// the thread that fills it, while it is in cache. Zeroing the vector first would cost a serial
/// pass over memory, a third of the time of an elementwise pass.
fn create<R: Send>(
    len: usize,
    chunk: usize,
    f: &(dyn Fn(usize, &mut [f32]) -> R + Sync),
) -> (Vec<f32>, Vec<R>) {
    let mut values = Vec::with_capacity(len);
    let spare = &mut values.spare_capacity_mut()[..len];
    let of_chunk = |(i, chunk): (usize, &mut [MaybeUninit<f32>])| f(i, zeroed(chunk));
    let chunk = chunk.max(1);
    let results = if len <= ELEMENTS || is_serial() {
        spare.chunks_mut(chunk).enumerate().map(of_chunk).collect()
    } else {
        let chunks = spare.par_chunks_mut(chunk).enumerate();
        chunks.map(of_chunk).collect()
    };
    // SAFETY: the chunks cover the first `len` elements, and each was initialised by `zeroed`.
    unsafe { values.set_len(len) };
    (values, results)
}

fn zeroed(values: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for value in values.iter_mut() {
        value.write(0.0);
    }
    // SAFETY: every element was initialised, and the layouts are the same.
    unsafe { &mut *(values as *mut [MaybeUninit<f32>] as *mut [f32]) }
}

/// The images' rows of `width`, added in order.
pub(super) fn add_up(width: usize, rows: Vec<Vec<f64>>) -> Vec<f32> {
    let mut total = vec![0f64; width];
    for row in rows {
        for (t, r) in total.iter_mut().zip(row) {
            *t += r;
        }
    }
    total.into_iter().map(|t| t as f32).collect()
}

fn in_order(sums: usize, partials: impl IntoIterator<Item = Vec<f32>>) -> Vec<f64> {
    let mut total = vec![0f64; sums];
    for partial in partials {
        for (t, p) in total.iter_mut().zip(partial) {
            *t += f64::from(p);
        }
    }
    total
}
