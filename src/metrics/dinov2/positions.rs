//! Interpolates position embeddings to another number of patches: PyTorch's `upsample_bicubic2d`
//! without antialias, [1,1+M²,C] → [1,1+m²,C].
//!
//! The original calls `interpolate` with the factor (m + 0.1)/M and gets m rows, each sampled at
//! (i + ½)·M/(m + 0.1) − ½: slightly nearer to the start than m evenly spaced rows. Keys' cubic
//! with a = −¾, edges replicated.

use candle_core::{Result, Tensor, bail};

/// The original's guard against getting m − 1 rows by rounding. It was trained with this, so it is
/// part of the network.
const OFFSET: f64 = 0.1;

/// Keeps the class token's position, and resizes the others as a map of `side`² patches.
pub(super) fn resize(positions: &Tensor, side: usize) -> Result<Tensor> {
    let (_, n, c) = positions.dims3()?;
    let trained = (n - 1).isqrt();
    if trained * trained != n - 1 {
        bail!("{} patch positions are not a square", n - 1);
    }
    if trained == side {
        return Ok(positions.clone());
    }
    let taps: Vec<_> = (0..side).map(|i| Taps::new(i, trained, side)).collect();
    let map = positions.narrow(1, 1, n - 1)?.flatten_all()?;
    let map = map.to_vec1::<f32>()?;
    let mut out = Vec::with_capacity(side * side * c);
    for row in &taps {
        for column in &taps {
            let mut sums = vec![0f64; c];
            for (y, v) in row.both() {
                for (x, h) in column.both() {
                    let from = &map[(y * trained + x) * c..][..c];
                    for (sum, &value) in sums.iter_mut().zip(from) {
                        *sum += v * h * f64::from(value);
                    }
                }
            }
            out.extend(sums.into_iter().map(|sum| sum as f32));
        }
    }
    let map = Tensor::from_vec(out, (1, side * side, c), positions.device())?;
    Tensor::cat(&[&positions.narrow(1, 0, 1)?, &map], 1)
}

/// The four source rows of a new one, and their weights.
struct Taps {
    places: [usize; 4],
    weights: [f64; 4],
}

impl Taps {
    fn new(i: usize, from: usize, to: usize) -> Self {
        let at = (i as f64 + 0.5) * from as f64 / (to as f64 + OFFSET) - 0.5;
        let (first, t) = (at.floor(), at - at.floor());
        let last = from as f64 - 1.0;
        Self {
            places: [-1.0, 0.0, 1.0, 2.0].map(|d| (first + d).clamp(0.0, last) as usize),
            weights: [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)],
        }
    }

    fn both(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.places.into_iter().zip(self.weights)
    }
}

const A: f64 = -0.75;

/// The cubic kernel within distance 1.
fn near(x: f64) -> f64 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The cubic kernel between distances 1 and 2.
fn far(x: f64) -> f64 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}
