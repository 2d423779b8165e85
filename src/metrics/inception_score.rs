//! The Inception Score (Salimans et al. 2016): exp of the mean KL(p(y|x) ‖ p(y)) over a split of
//! the images, averaged over splits. Logits [N,1008] are without the bias of `fc`, as in both
//! evaluators in common use.
//!
//! ADM's evaluator uses consecutive splits of 5,000 images, so that the order matters;
//! torch-fidelity uses ten equal splits of shuffled images. Both values are reported.

use super::features::Rows;
use crate::rng::{Purpose, Stream};

/// ADM's split size.
const SPLIT: usize = 5000;

/// torch-fidelity's number of splits.
const SPLITS: usize = 10;

/// The mean over splits and their standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    pub value: f64,
    pub deviation: f64,
    pub splits: usize,
}

/// ADM's variant: consecutive splits of 5,000 in the order of the images; the last may be smaller.
pub fn in_order(logits: &Rows) -> Score {
    let order: Vec<usize> = (0..logits.count()).collect();
    score(logits, order.chunks(SPLIT))
}

/// torch-fidelity's variant: ten equal splits of the images, shuffled by `seed`.
pub fn shuffled(logits: &Rows, seed: u64) -> Score {
    let n = logits.count();
    let mut order: Vec<usize> = (0..n).collect();
    let mut draws = Stream::new(seed, Purpose::Subset, 0, 1).draws();
    draws.shuffle(&mut order);
    let splits = SPLITS.min(n.max(1));
    score(
        logits,
        (0..splits).map(|i| &order[i * n / splits..(i + 1) * n / splits]),
    )
}

fn score<'a>(logits: &Rows, splits: impl Iterator<Item = &'a [usize]>) -> Score {
    let scores: Vec<f64> = splits.map(|split| of_split(logits, split)).collect();
    let n = scores.len() as f64;
    let value = scores.iter().sum::<f64>() / n;
    let squares: f64 = scores.iter().map(|s| (s - value).powi(2)).sum();
    Score {
        value,
        deviation: (squares / n).sqrt(),
        splits: scores.len(),
    }
}

fn of_split(logits: &Rows, split: &[usize]) -> f64 {
    let width = logits.width;
    let row = |i: usize| log_softmax(&logits.values[i * width..][..width]);
    let mut mean = vec![0f64; width];
    // Σ p·ln p over all images: the negative entropies.
    let mut certain = 0.0;
    for &i in split {
        for (mean, log) in mean.iter_mut().zip(row(i)) {
            let p = log.exp();
            *mean += p;
            certain += if p > 0.0 { p * log } else { 0.0 };
        }
    }
    let n = split.len() as f64;
    // Σ_x Σ_y p(y|x)·ln p(y) = n·Σ_y p(y)·ln p(y).
    let common: f64 = mean
        .iter()
        .map(|sum| sum / n)
        .filter(|&p| p > 0.0)
        .map(|p| p * p.ln())
        .sum();
    (certain / n - common).exp()
}

/// ln softmax of one row.
fn log_softmax(logits: &[f32]) -> impl Iterator<Item = f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = f64::from(largest);
    let exps = logits.iter().map(|&x| (f64::from(x) - largest).exp());
    let total = exps.sum::<f64>().ln() + largest;
    logits.iter().map(move |&x| f64::from(x) - total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` images, each certainly of one of `classes` classes, in turn.
    fn certain(count: usize, classes: usize) -> Rows {
        let mut values = vec![0f32; count * 20];
        for (i, row) in values.chunks_exact_mut(20).enumerate() {
            row[i % classes] = 100.0;
        }
        Rows { width: 20, values }
    }

    #[test]
    fn certain_images_of_k_classes_score_k() {
        let logits = certain(7000, 7);
        assert!((in_order(&logits).value - 7.0).abs() < 1e-4);
        // A split of 700 shuffled images does not have exactly 100 of each class.
        assert!((shuffled(&logits, 0).value - 7.0).abs() < 0.1);
        let unsure = Rows {
            width: 20,
            values: vec![0.0; 20 * 30],
        };
        assert!((in_order(&unsure).value - 1.0).abs() < 1e-12);
    }

    #[test]
    fn images_sorted_by_class_change_the_ordered_score_alone() {
        let mixed = certain(10_000, 10);
        let mut sorted: Vec<&[f32]> = mixed.iter().collect();
        sorted.sort_by(|a, b| b.partial_cmp(a).expect("numbers"));
        let values = sorted.concat();
        let sorted = Rows { width: 20, values };
        assert!((in_order(&mixed).value - 10.0).abs() < 1e-9);
        // Each half of the sorted images has five classes.
        assert!((in_order(&sorted).value - 5.0).abs() < 1e-9);
        let (a, b) = (shuffled(&mixed, 3), shuffled(&sorted, 3));
        assert!((a.value - b.value).abs() < 0.1, "{a:?} {b:?}");
    }
}
