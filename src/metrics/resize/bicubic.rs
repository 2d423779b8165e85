//! PIL's bicubic resize with antialias (a = −½, support 2 · max(1, N/n)): [H,W,3] → [h,w,3].

/// An interleaved picture in floats, each channel resized as PIL resizes mode `F`: rows first along x, then along y.
pub fn floats(pixels: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    let across = resize(pixels, from.0, from.1, to.1, 3);
    // Lines are the rows of a picture of one column.
    resize(&across, 1, from.0, to.0, to.1 * 3)
}

/// Each of `lines` lines of `from` pixels of `channels` numbers becomes one of `to` pixels.
fn resize(pixels: &[f32], lines: usize, from: usize, to: usize, channels: usize) -> Vec<f32> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let mut out = vec![0f32; lines * to * channels];
    let mut sums = vec![0f64; channels];
    for i in 0..to {
        let centre = (i as f64 + 0.5) * scale;
        let first = ((centre - 2.0 * stretch + 0.5).max(0.0)) as usize;
        let last = ((centre + 2.0 * stretch + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..last)
            .map(|j| kernel((j as f64 + 0.5 - centre) / stretch))
            .collect();
        let total: f64 = weights.iter().sum();
        for line in 0..lines {
            sums.fill(0.0);
            for (j, w) in (first..last).zip(&weights) {
                let pixel = &pixels[(line * from + j) * channels..][..channels];
                for (sum, &x) in sums.iter_mut().zip(pixel) {
                    *sum += f64::from(x) * w / total;
                }
            }
            let out = &mut out[(line * to + i) * channels..][..channels];
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = sum as f32;
            }
        }
    }
    out
}

/// Keys' cubic with a = −½.
fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
