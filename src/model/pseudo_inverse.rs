//! The pseudo-inverse (WᵀW)⁻¹Wᵀ of a tall matrix [n,d] of full rank: [d,n]; in f64, by Cholesky
//! decomposition.

use candle_core::{DType, Device, Result, Tensor, bail};

/// W [n,d], n ≥ d → W⁺ [d,n] with W⁺W = 1.
///
/// Errors: the columns are so nearly dependent that the normal equations lose more than half of
/// f64's digits.
pub fn pseudo_inverse(w: &Tensor) -> Result<Tensor> {
    let (n, d) = w.dims2()?;
    let rows = w
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F64)?
        .to_vec2::<f64>()?;
    let mut gram = vec![vec![0.0; d]; d];
    for (i, line) in gram.iter_mut().enumerate() {
        for (j, sum) in line.iter_mut().enumerate().take(i + 1) {
            *sum = rows.iter().map(|row| row[i] * row[j]).sum();
        }
    }
    let factor = cholesky(gram)?;
    let mut inverse = vec![0.0; d * n];
    for (k, row) in rows.iter().enumerate() {
        for (i, x) in solve(&factor, row).into_iter().enumerate() {
            inverse[i * n + k] = x;
        }
    }
    Tensor::from_vec(inverse, (d, n), w.device())?.to_dtype(w.dtype())
}

/// L with L·Lᵀ = A, from A's lower triangle.
fn cholesky(mut a: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
    for j in 0..a.len() {
        let diagonal = a[j][j];
        let pivot = diagonal - (0..j).map(|k| a[j][k] * a[j][k]).sum::<f64>();
        // Comparisons with NaN are false.
        if pivot.is_nan() || pivot <= 1e-8 * diagonal {
            bail!(
                "no pseudo-inverse: column {j} of {} depends on those before it (remainder of its square: {pivot:.1e} of {diagonal:.1e})",
                a.len()
            );
        }
        a[j][j] = pivot.sqrt();
        for i in j + 1..a.len() {
            let sum: f64 = (0..j).map(|k| a[i][k] * a[j][k]).sum();
            a[i][j] = (a[i][j] - sum) / a[j][j];
        }
    }
    Ok(a)
}

/// Solves L·Lᵀ·x = b.
fn solve(l: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut x = b.to_vec();
    for i in 0..x.len() {
        let sum: f64 = (0..i).map(|k| l[i][k] * x[k]).sum();
        x[i] = (x[i] - sum) / l[i][i];
    }
    for i in (0..x.len()).rev() {
        let sum: f64 = (i + 1..x.len()).map(|k| l[k][i] * x[k]).sum();
        x[i] = (x[i] - sum) / l[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, normal};

    fn random(n: usize, d: usize) -> Result<Tensor> {
        normal(3, Purpose::Init, &[0], 0, &[n, d], &Device::Cpu)?.squeeze(0)
    }

    #[test]
    fn it_undoes_a_tall_matrix() -> Result<()> {
        let w = random(17, 5)?;
        let product = pseudo_inverse(&w)?.matmul(&w)?.to_vec2::<f32>()?;
        for (i, row) in product.iter().enumerate() {
            for (j, x) in row.iter().enumerate() {
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((x - expected).abs() < 1e-5, "[{i},{j}] = {x}");
            }
        }
        Ok(())
    }

    #[test]
    fn dependent_columns_are_refused() -> Result<()> {
        let w = random(17, 4)?;
        let twice = Tensor::cat(&[&w, &w.narrow(1, 2, 1)?], 1)?;
        let error = pseudo_inverse(&twice).unwrap_err().to_string();
        assert!(error.contains("column 4 of 5"), "{error}");
        Ok(())
    }
}
