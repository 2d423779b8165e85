//! Algorithm 1 on the CPU, one step at a time for all images; rows (positions) are divided among
//! the threads.
//!
//! Images are independent: each has its own noise stream or map, and its nearest codes and shared
//! convolution depend on its own map only.

use candle_core::{Device, Result, Tensor};

use super::nearest::Nearest;
use super::{Codebook, Examples, Noise, Perturbation, Quantized, Schedule};
use crate::rng::{Purpose, normal};

pub fn recurrent_quantize(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
) -> Result<Quantized> {
    let (b, h, w, d) = v.dims4()?;
    let (rows, size, steps) = (b * h * w, b * h * w * d, schedule.steps());
    let embedding = values(&codebook.embedding)?;
    let nearest = Nearest::new(&embedding, d);
    let images: Vec<usize> = (0..b).collect();
    let mut walk = Walk::new(values(v)?);
    let mut codes = vec![0u32; steps * rows];
    let mut noisy = vec![0f32; steps * size];
    let mut sums = Vec::with_capacity((steps + 1) * size);
    sums.extend_from_slice(&walk.sum);
    for t in 1..=steps {
        let eps = match schedule.beta[t - 1] {
            0.0 => Vec::new(),
            _ => noise_of(noise, t, &images, [h, w, d])?,
        };
        let v_t = &mut noisy[(t - 1) * size..t * size];
        let c = &mut codes[(t - 1) * rows..t * rows];
        walk.mix(schedule, t, &eps, v_t);
        nearest.search(v_t, c);
        walk.take(codebook, c, [b, h, w])?;
        sums.extend_from_slice(&walk.sum);
    }
    Ok(Quantized {
        codes: Tensor::from_vec(codes, (steps, b, h, w), &Device::Cpu)?,
        sums: Tensor::from_vec(sums, (steps + 1, b, h, w, d), &Device::Cpu)?,
        noisy: Tensor::from_vec(noisy, (steps, b, h, w, d), &Device::Cpu)?,
    })
}

pub fn quantize_until(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
    t: &[u32],
    perturbation: Option<&Perturbation>,
) -> Result<Examples> {
    let (b, h, w, d) = v.dims4()?;
    let (rows, size) = (h * w, h * w * d);
    let embedding = values(&codebook.embedding)?;
    let nearest = Nearest::new(&embedding, d);
    // Sorted by falling t, so that the images still in progress are a prefix.
    let mut images: Vec<usize> = (0..b).collect();
    images.sort_by_key(|&image| std::cmp::Reverse(t[image]));
    let v = values(v)?;
    let start = images.iter().flat_map(|&i| &v[i * size..(i + 1) * size]);
    let mut walk = Walk::new(start.copied().collect());
    let mut examples = (
        vec![0f32; b * size],
        vec![0f32; b * size],
        vec![0u32; b * rows],
    );
    for step in 1..=schedule.steps() {
        let eps = noise_of(noise, step, &images, [h, w, d])?;
        let mut v_t = vec![0f32; walk.sum.len()];
        let mut c = vec![0u32; images.len() * rows];
        walk.mix(schedule, step, &eps, &mut v_t);
        nearest.search(&v_t, &mut c);
        let on = images.partition_point(|&image| t[image] as usize > step);
        for (place, &image) in images.iter().enumerate().skip(on) {
            let (from, to) = (
                place * size..(place + 1) * size,
                image * size..(image + 1) * size,
            );
            examples.0[to.clone()].copy_from_slice(&eps[from.clone()]);
            examples.1[to].copy_from_slice(&walk.sum[from]);
            examples.2[image * rows..(image + 1) * rows]
                .copy_from_slice(&c[place * rows..(place + 1) * rows]);
        }
        images.truncate(on);
        if on == 0 {
            break;
        }
        walk.truncate(on * size);
        if let (Some(perturbation), Noise::Drawn { seed, indices }) = (perturbation, noise) {
            for (codes, &image) in c.chunks_exact_mut(rows).zip(&images) {
                perturbation.apply(codes, *seed, indices[image], step);
            }
        }
        walk.take(codebook, &c[..on * rows], [on, h, w])?;
    }
    Ok(Examples {
        noise: Tensor::from_vec(examples.0, (b, h, w, d), &Device::Cpu)?,
        sum: Tensor::from_vec(examples.1, (b, h, w, d), &Device::Cpu)?,
        codes: Tensor::from_vec(examples.2, (b, h, w), &Device::Cpu)?,
    })
}

/// r_t and z'_{t−1} of some images.
struct Walk {
    residual: Vec<f32>,
    sum: Vec<f32>,
}

impl Walk {
    fn new(v: Vec<f32>) -> Self {
        Self {
            sum: vec![0.0; v.len()],
            residual: v,
        }
    }

    /// v_t = α_t·r_t + β_t·ε_t; without noise if β_t is 0.
    fn mix(&self, schedule: &Schedule, t: usize, eps: &[f32], v_t: &mut [f32]) {
        let (alpha, beta) = (schedule.alpha[t - 1], schedule.beta[t - 1]);
        for (v, r) in v_t.iter_mut().zip(&self.residual) {
            *v = alpha * r;
        }
        if beta != 0.0 {
            for (v, e) in v_t.iter_mut().zip(eps) {
                *v += beta * e;
            }
        }
    }

    /// r_{t+1} = r_t − v'_t and z'_t = z'_{t−1} + v'_t.
    fn take(&mut self, codebook: &Codebook, codes: &[u32], shape: [usize; 3]) -> Result<()> {
        let codes = Tensor::from_slice(codes, &shape, &Device::Cpu)?;
        let chosen = values(&codebook.lookup(&codes)?)?;
        for ((r, z), q) in self.residual.iter_mut().zip(&mut self.sum).zip(&chosen) {
            *r -= q;
            *z += q;
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.residual.truncate(len);
        self.sum.truncate(len);
    }
}

/// ε_t of these images, in this order.
fn noise_of(noise: &Noise, t: usize, images: &[usize], shape: [usize; 3]) -> Result<Vec<f32>> {
    match *noise {
        Noise::Given(noise) => {
            let at: Vec<u32> = images.iter().map(|&image| image as u32).collect();
            let at = Tensor::from_vec(at, images.len(), &Device::Cpu)?;
            values(&noise.get(t - 1)?.index_select(&at, 0)?)
        }
        Noise::Drawn { seed, indices } => {
            let indices: Vec<u64> = images.iter().map(|&image| indices[image]).collect();
            let purpose = Purpose::Noise;
            values(&normal(
                seed,
                purpose,
                &indices,
                t as u32,
                &shape,
                &Device::Cpu,
            )?)
        }
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
