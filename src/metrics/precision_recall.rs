//! Improved precision and recall (Kynkäänniemi et al. 2019) as ADM's evaluator computes them.
//!
//! Each point has a ball that reaches to its third nearest neighbour in its own set. Precision is
//! the share of samples that lie in a ball of the reference, recall the share of the reference that
//! lies in a ball of the samples; the border counts as inside. The features are those of FID,
//! [N,2048].

use std::ops::Range;

use rayon::prelude::*;

use super::distances::{Arithmetic, Points};
use super::features::Rows;
use crate::error::{Result, hinted};

/// The ball's radius is the distance to this nearest neighbour.
const NEIGHBOUR: usize = 3;

/// Points per block and side: the distances of a block take 32 MiB.
const BLOCK: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrecisionRecall {
    pub precision: f64,
    pub recall: f64,
    /// Half precision was requested and could represent the distances.
    pub half: bool,
}

/// Errors: a set is too small to have a third neighbour.
pub fn check(reference: usize, samples: usize) -> Result<()> {
    let fewest = reference.min(samples);
    if fewest > NEIGHBOUR {
        return Ok(());
    }
    Err(hinted(
        format!("precision and recall: a set of {fewest} images has no third neighbour"),
        "at least 4 images are needed on either side, and thousands for a meaningful value",
    ))
}

/// Computes both; memory beyond the features does not depend on their number.
///
/// Errors: a set is too small to have a third neighbour; features of different dimensions.
pub fn precision_recall(
    reference: &Rows,
    samples: &Rows,
    mut arithmetic: Arithmetic,
) -> Result<PrecisionRecall> {
    if reference.width != samples.width {
        return Err(hinted(
            format!(
                "features of {} and of {} dimensions cannot be compared",
                samples.width, reference.width
            ),
            "compute both sets' features with the same network and output",
        ));
    }
    check(reference.count(), samples.count())?;
    let mut real = Points::new(reference, arithmetic);
    let mut made = Points::new(samples, arithmetic);
    let all = || [(&real, &real), (&real, &made), (&made, &made)];
    if arithmetic == Arithmetic::Half && !all().iter().all(|(a, b)| a.fit_in_half(b)) {
        arithmetic = Arithmetic::Exact;
        (real, made) = (
            Points::new(reference, arithmetic),
            Points::new(samples, arithmetic),
        );
    }
    let (real_radii, made_radii) = (radii(&real), radii(&made));
    let mut real_inside = vec![false; real.count()];
    let mut made_inside = vec![false; made.count()];
    for rows in blocks(real.count()) {
        for columns in blocks(made.count()) {
            let distances = real.distances(rows.clone(), &made, columns.clone());
            for (j, column) in columns.clone().enumerate() {
                for (i, row) in rows.clone().enumerate() {
                    let distance = distances[(i, j)];
                    made_inside[column] |= distance <= real_radii[row];
                    real_inside[row] |= distance <= made_radii[column];
                }
            }
        }
    }
    let part = |inside: &[bool]| {
        inside.iter().filter(|inside| **inside).count() as f64 / inside.len() as f64
    };
    Ok(PrecisionRecall {
        precision: part(&made_inside),
        recall: part(&real_inside),
        half: arithmetic == Arithmetic::Half,
    })
}

fn blocks(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count)
        .step_by(BLOCK)
        .map(move |start| start..count.min(start + BLOCK))
}

/// The squared distance of each point to its third nearest neighbour, not counting itself.
fn radii(points: &Points) -> Vec<f64> {
    let mut radii = Vec::with_capacity(points.count());
    for rows in blocks(points.count()) {
        let mut nearest = vec![[f64::INFINITY; NEIGHBOUR + 1]; rows.len()];
        for columns in blocks(points.count()) {
            // A column holds the distances of one point, contiguously.
            let distances = points.distances(columns, points, rows.clone());
            nearest.par_iter_mut().enumerate().for_each(|(j, nearest)| {
                for &distance in distances.col(j).iter() {
                    insert(nearest, distance);
                }
            });
        }
        radii.extend(nearest.iter().map(|nearest| nearest[NEIGHBOUR]));
    }
    radii
}

/// Keeps the smallest distances, sorted.
fn insert(nearest: &mut [f64; NEIGHBOUR + 1], distance: f64) {
    if distance >= nearest[NEIGHBOUR] {
        return;
    }
    let place = nearest.partition_point(|&n| n <= distance);
    nearest[place..].rotate_right(1);
    nearest[place] = distance;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn normal(seed: u64, count: usize, scale: f32) -> Rows {
        let mut values = vec![0f32; count * 8];
        Stream::new(seed, Purpose::Noise, 0, 0).fill_normal(&mut values);
        values.iter_mut().for_each(|x| *x *= scale);
        Rows { width: 8, values }
    }

    fn of(reference: &Rows, samples: &Rows) -> PrecisionRecall {
        precision_recall(reference, samples, Arithmetic::Exact).expect("enough points")
    }

    /// The definition, pair by pair, by sorting whole rows.
    fn by_definition(reference: &Rows, samples: &Rows) -> (f64, f64) {
        let distance = |a: &[f32], b: &[f32]| -> f64 {
            let pairs = a.iter().zip(b);
            pairs
                .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2))
                .sum()
        };
        let radii = |rows: &Rows| -> Vec<f64> {
            let of = |a: &[f32]| {
                let mut all: Vec<f64> = rows.iter().map(|b| distance(a, b)).collect();
                all.sort_by(f64::total_cmp);
                all[3]
            };
            rows.iter().map(of).collect()
        };
        let covered = |points: &Rows, centres: &Rows| {
            let radii = radii(centres);
            let inside = |p: &&[f32]| {
                let mut balls = centres.iter().zip(&radii);
                balls.any(|(c, &r)| distance(p, c) <= r)
            };
            points.iter().filter(inside).count() as f64 / points.count() as f64
        };
        (covered(samples, reference), covered(reference, samples))
    }

    #[test]
    fn blocks_give_what_the_definition_gives() {
        // More than a block on one side.
        let (reference, samples) = (normal(1, 150, 1.0), normal(2, BLOCK + 70, 1.2));
        let found = of(&reference, &samples);
        let (precision, recall) = by_definition(&reference, &samples);
        assert_eq!((found.precision, found.recall), (precision, recall));
        assert!(precision > 0.1 && precision < 1.0);
    }

    #[test]
    fn collapse_lowers_recall_and_noise_lowers_precision() {
        let reference = normal(1, 600, 1.0);
        let faithful = of(&reference, &normal(2, 600, 1.0));
        let collapsed = of(&reference, &normal(3, 600, 0.3));
        assert!(collapsed.precision >= faithful.precision, "{collapsed:?}");
        assert!(collapsed.recall < 0.5 * faithful.recall, "{collapsed:?}");
        let noisy = of(&reference, &normal(4, 600, 2.5));
        assert!(noisy.precision < 0.5 * faithful.precision, "{noisy:?}");
        assert!(noisy.recall > collapsed.recall);
    }

    #[test]
    fn a_single_image_again_and_again_is_a_ball_of_no_size() {
        let reference = normal(1, 50, 1.0);
        let values = reference.values[..8].repeat(20);
        let same = Rows { width: 8, values };
        let found = of(&reference, &same);
        // This image is inside its own ball only, and no other image is.
        assert_eq!((found.precision, found.recall), (1.0, 1.0 / 50.0));
    }

    #[test]
    fn half_precision_differs_little_and_falls_back_where_it_overflows() -> Result<()> {
        let (reference, samples) = (normal(1, 300, 1.0), normal(2, 300, 1.0));
        let half = precision_recall(&reference, &samples, Arithmetic::Half)?;
        let exact = of(&reference, &samples);
        assert!(half.half && (half.precision - exact.precision).abs() < 0.02);
        let far = precision_recall(&normal(1, 9, 1e3), &normal(2, 9, 1e3), Arithmetic::Half)?;
        assert!(!far.half);
        let few = precision_recall(&normal(1, 3, 1.0), &samples, Arithmetic::Exact);
        assert!(few.unwrap_err().to_string().contains("third neighbour"));
        Ok(())
    }
}
