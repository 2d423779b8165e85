//! Attention on the CPU: images side by side, and the heads of an image too. A head's rows are
//! gathered from the packed ones and rotated as they are read; its gradients are rotated back as
//! they are written.

use super::RopeTable;
use super::head::{self, Head};
use super::rotation::{Rotation, Rows, RowsMut};
use crate::ops::{blocks, slices};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::OnceLock;

pub(super) struct Attention {
    pub heads: usize,
    pub rope: Option<RopeTable>,
    /// Image by image and head by head: the logs of a query's sum of exponentials, [N].
    pub log_sums: OnceLock<Vec<Vec<Vec<f32>>>>,
}

/// N tokens, rows of `packed` = 3·C values, heads of width d.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    packed: usize,
    d: usize,
}

impl Sizes {
    /// Where the rows of q (part 0), k (1) or v (2) of a head begin.
    fn offset(self, part: usize, head: usize) -> usize {
        part * self.packed / 3 + head * self.d
    }

    /// A head's rows in an image's, which are `stride` wide and begin at `offset`.
    fn rows(self, values: &[f32], offset: usize, stride: usize) -> Rows<'_> {
        Rows {
            values: &values[offset..],
            stride,
            width: self.d,
        }
    }

    /// A copy [N,d] of rows, rotated.
    fn gathered(self, from: Rows, rotation: Rotation) -> Vec<f32> {
        let mut values = vec![0f32; self.n * self.d];
        let to = RowsMut {
            values: &mut values,
            stride: self.d,
        };
        rotation.forward(from, to);
        values
    }

    /// Rotated queries and keys, and values, [N,d] each, of an image's rows [N,3C].
    fn head(self, qkv: &[f32], head: usize, rotation: Rotation) -> [Vec<f32>; 3] {
        [(0, rotation), (1, rotation), (2, Rotation::NONE)].map(|(part, rotation)| {
            self.gathered(
                self.rows(qkv, self.offset(part, head), self.packed),
                rotation,
            )
        })
    }
}

impl Attention {
    fn sizes(&self, n: usize, packed: usize) -> Sizes {
        let d = packed / 3 / self.heads;
        Sizes { n, packed, d }
    }

    /// `f` of every head, side by side, and their results in order.
    fn of_heads<R: Send>(&self, f: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
        if blocks::is_serial() {
            return (0..self.heads).map(f).collect();
        }
        (0..self.heads).into_par_iter().map(f).collect()
    }

    fn with_rotation<R>(&self, f: impl FnOnce(Rotation) -> R) -> Result<R> {
        match &self.rope {
            Some(table) => slices::read([table.cos(), table.sin()], |[cos, sin]| {
                f(Rotation { cos, sin })
            }),
            None => Ok(f(Rotation::NONE)),
        }
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, n, packed) = layout.shape().dims3()?;
        let (c, sizes) = (packed / 3, self.sizes(n, packed));
        let qkv = slices::of(qkv, layout)?;
        let (y, log_sums) = self.with_rotation(|rotation| {
            blocks::images(b * n * c, n * c, &|b, y| {
                let qkv = &qkv[b * n * packed..][..n * packed];
                let forward = |head: usize, y: RowsMut| {
                    let part = |part| sizes.rows(qkv, sizes.offset(part, head), packed);
                    head::forward([0, 1, 2].map(part), n, rotation, y)
                };
                if blocks::is_serial() {
                    let of_head = |head| {
                        let values = &mut y[sizes.offset(0, head)..];
                        forward(head, RowsMut { values, stride: c })
                    };
                    return (0..self.heads).map(of_head).collect();
                }
                let heads = self.of_heads(|head| {
                    let (mut values, stride) = (vec![0f32; n * sizes.d], sizes.d);
                    let y = RowsMut {
                        values: &mut values,
                        stride,
                    };
                    let sums = forward(head, y);
                    (values, sums)
                });
                let mut log_sums = Vec::with_capacity(self.heads);
                for (head, (of_head, sums)) in heads.into_iter().enumerate() {
                    let to = RowsMut {
                        values: &mut y[sizes.offset(0, head)..],
                        stride: c,
                    };
                    Rotation::NONE.forward(sizes.rows(&of_head, 0, sizes.d), to);
                    log_sums.push(sums);
                }
                log_sums
            })
        })?;
        self.log_sums.get_or_init(|| log_sums);
        Ok((CpuStorage::F32(y), Shape::from((b, n, c))))
    }

    fn bwd(&self, qkv: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (b, n, packed) = qkv.dims3()?;
        let (c, sizes) = (packed / 3, self.sizes(n, packed));
        let Some(log_sums) = self.log_sums.get() else {
            bail!("attention: the gradient is asked for before the result");
        };
        let backward = |rotation: Rotation, [qkv, y, dy]: [&[f32]; 3]| {
            blocks::images(b * n * packed, n * packed, &|b, dqkv| {
                let qkv = &qkv[b * n * packed..][..n * packed];
                let (y, dy) = (&y[b * n * c..][..n * c], &dy[b * n * c..][..n * c]);
                let heads = self.of_heads(|head| {
                    let [q, k, v] = sizes.head(qkv, head, rotation);
                    let [y, dy] = [y, dy].map(|values| {
                        let rows = sizes.rows(values, sizes.offset(0, head), c);
                        sizes.gathered(rows, Rotation::NONE)
                    });
                    Head::new(&q, &k, &v, sizes.d).backward(&y, &dy, &log_sums[b][head])
                });
                for (head, gradients) in heads.iter().enumerate() {
                    let rotations = [rotation, rotation, Rotation::NONE];
                    for (part, (gradient, rotation)) in gradients.iter().zip(rotations).enumerate()
                    {
                        let to = RowsMut {
                            values: &mut dqkv[sizes.offset(part, head)..],
                            stride: packed,
                        };
                        rotation.backward(sizes.rows(gradient, 0, sizes.d), to);
                    }
                }
            })
        };
        let (dqkv, _) = slices::read([qkv, y, dy], |values| {
            self.with_rotation(|rotation| backward(rotation, values))
        })??;
        slices::gradient(qkv, dqkv)
    }
}
