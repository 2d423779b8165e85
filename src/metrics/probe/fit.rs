//! Fits a probe: softmax regression of labels on standardised features, by AdamW on batches in a
//! drawn order, the learning rate falling to 0 along a cosine.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{Parameters, softmax};
use crate::data::Order;
use crate::error::{Result, hinted};
use crate::metrics::features::Rows;
use crate::ops;
use crate::store::int8::Int8;

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub epochs: usize,
    pub batch_size: usize,
    pub lr: f64,
    pub weight_decay: f64,
    pub seed: u64,
}

const BETAS: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;

/// A feature that never changes is divided by this.
const LEAST_STD: f64 = 1e-6;

/// `rows` [N,D] with their `labels`, each below `classes`. `after` gets the number of the examples
/// seen and the loss of their last batch.
///
/// Errors: no rows; a class without an image; those of `after`.
pub fn fit(
    mut rows: Rows,
    labels: &[u32],
    classes: usize,
    settings: &Settings,
    mut after: impl FnMut(u64, f64) -> Result<()>,
) -> Result<Parameters> {
    let (n, d) = (labels.len(), rows.width);
    anyhow::ensure!(rows.count() == n, "{} rows for {n} labels", rows.count());
    let mut seen = vec![false; classes];
    labels.iter().for_each(|label| seen[*label as usize] = true);
    if let Some(class) = seen.iter().position(|seen| !seen) {
        return Err(hinted(
            format!("class number {class} of {classes} (from 0) has no image to be fitted to"),
            "name images of all classes",
        ));
    }
    let (mean, std) = standardise(&mut rows);
    let mut weight = Adam::new(classes * d, settings.weight_decay);
    let mut bias = Adam::new(classes, 0.0);
    let order = Order::new(settings.seed, n);
    let batch = settings.batch_size.min(n);
    let steps = (settings.epochs * n).div_ceil(batch);
    for step in 0..steps {
        let first = (step * batch) as u64;
        let places: Vec<usize> = (first..first + batch as u64)
            .map(|n| order.place(n))
            .collect();
        let row = |place: &usize| &rows.values[place * d..(place + 1) * d];
        let values: Vec<f32> = places.iter().flat_map(row).copied().collect();
        let x = Tensor::from_vec(values, (batch, d), &Device::Cpu)?;
        let w = Tensor::from_slice(&weight.values, (classes, d), &Device::Cpu)?;
        let b = Tensor::from_slice(&bias.values, classes, &Device::Cpu)?;
        let logits = ops::linear(&x, &w, Some(&b))?;
        // ∂L/∂logits = (p − y) / B
        let mut slope = logits.flatten_all()?.to_vec1::<f32>()?;
        let mut loss = 0.0;
        for (p, place) in slope.chunks_exact_mut(classes).zip(&places) {
            softmax(p);
            let label = labels[*place] as usize;
            loss -= f64::from(p[label].max(f32::MIN_POSITIVE)).ln() / batch as f64;
            p[label] -= 1.0;
            p.iter_mut().for_each(|p| *p /= batch as f32);
        }
        let slope = Tensor::from_vec(slope, (batch, classes), &Device::Cpu)?;
        let dw = slope.t()?.matmul(&x)?.flatten_all()?.to_vec1::<f32>()?;
        let db = slope.sum(0)?.to_vec1::<f32>()?;
        let turn = std::f64::consts::PI * step as f64 / steps as f64;
        let lr = settings.lr * 0.5 * (1.0 + turn.cos());
        weight.step(&dw, lr, step + 1);
        bias.step(&db, lr, step + 1);
        after(((step + 1) * batch) as u64, loss)?;
    }
    let weight = Tensor::from_vec(weight.values, (classes, d), &Device::Cpu)?;
    Ok(Parameters {
        weight: Int8::of("weight", &weight)?,
        bias: bias.values,
        mean,
        std,
    })
}

/// Turns every column into one of mean 0 and standard deviation 1; returns what they were.
fn standardise(rows: &mut Rows) -> (Vec<f32>, Vec<f32>) {
    let (d, n) = (rows.width, rows.count().max(1) as f64);
    let mean = |of: &dyn Fn(usize, f32) -> f64| {
        let mut sums = vec![0.0; d];
        for row in rows.iter() {
            let columns = sums.iter_mut().zip(row).enumerate();
            columns.for_each(|(column, (sum, x))| *sum += of(column, *x));
        }
        sums.iter_mut().for_each(|sum| *sum /= n);
        sums
    };
    let means = mean(&|_, x| f64::from(x));
    let variances = mean(&|column, x| (f64::from(x) - means[column]).powi(2));
    let means: Vec<f32> = means.iter().map(|m| *m as f32).collect();
    let stds: Vec<f32> = variances
        .iter()
        .map(|v| v.sqrt().max(LEAST_STD) as f32)
        .collect();
    rows.values.par_chunks_exact_mut(d).for_each(|row| {
        for ((x, mean), std) in row.iter_mut().zip(&means).zip(&stds) {
            *x = (*x - mean) / std;
        }
    });
    (means, stds)
}

/// Parameters with their moments.
struct Adam {
    values: Vec<f32>,
    moments: Vec<[f32; 2]>,
    weight_decay: f64,
}

impl Adam {
    fn new(count: usize, weight_decay: f64) -> Self {
        Self {
            values: vec![0.0; count],
            moments: vec![[0.0; 2]; count],
            weight_decay,
        }
    }

    /// AdamW's step number `n`, from 1.
    fn step(&mut self, slopes: &[f32], lr: f64, n: usize) {
        let [b1, b2] = BETAS.map(|b| b as f32);
        let [c1, c2] = BETAS.map(|b| (1.0 / (1.0 - b.powi(n as i32))) as f32);
        let (lr, decay) = (lr as f32, (lr * self.weight_decay) as f32);
        let all = self.values.par_iter_mut().zip(&mut self.moments);
        all.zip(slopes).with_min_len(4096).for_each(|((w, m), g)| {
            m[0] = b1 * m[0] + (1.0 - b1) * g;
            m[1] = b2 * m[1] + (1.0 - b2) * g * g;
            *w -= lr * m[0] * c1 / ((m[1] * c2).sqrt() + EPS as f32) + decay * *w;
        });
    }
}
