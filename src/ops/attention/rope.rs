//! Angles of rotary position embedding (Su et al. 2021) for a map of h×w tokens in raster order.
//!
//! One dimension: position i turns pair j by i·base^(−2j/d). Two dimensions (ours): the first half
//! of the pairs turns by the row, the second by the column, each with the frequencies of a head of
//! width d/2.

use candle_core::{Device, Result, Tensor, bail};

/// What a token's position is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// The raster index.
    OneD,
    /// Row for the first half of a head's pairs, column for the second.
    TwoD,
}

/// Cosines and sines [N, d/2] of every token and pair, for heads of width d.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Tensor,
    sin: Tensor,
}

impl RopeTable {
    /// The table of (h, w) tokens in raster order; `head_dim` is even (a multiple of 4 in two
    /// dimensions).
    pub fn new(
        tokens: (usize, usize),
        head_dim: usize,
        base: f64,
        kind: RopeKind,
        device: &Device,
    ) -> Result<Self> {
        let divisor = match kind {
            RopeKind::OneD => 2,
            RopeKind::TwoD => 4,
        };
        if head_dim == 0 || !head_dim.is_multiple_of(divisor) {
            bail!("rope ({kind:?}): heads of width {head_dim}, expected a multiple of {divisor}");
        }
        let (h, w) = tokens;
        let mut angles = Vec::with_capacity(h * w * head_dim / 2);
        for i in 0..h * w {
            match kind {
                RopeKind::OneD => turn(&mut angles, i, head_dim, base),
                RopeKind::TwoD => {
                    turn(&mut angles, i / w, head_dim / 2, base);
                    turn(&mut angles, i % w, head_dim / 2, base);
                }
            }
        }
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&a| f(a) as f32).collect();
            Tensor::from_vec(values, (h * w, head_dim / 2), device)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }

    /// [N, d/2]
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// [N, d/2]
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }
}

/// The angles of one position: pair j turns by position·base^(−2j/dim).
fn turn(angles: &mut Vec<f64>, position: usize, dim: usize, base: f64) {
    let pairs = 0..dim / 2;
    angles.extend(pairs.map(|j| position as f64 * base.powf(-2. * j as f64 / dim as f64)));
}
