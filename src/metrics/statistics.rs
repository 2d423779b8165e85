//! Streaming mean and covariance of features: rows [N,D] → μ [D], Σ [D,D] (unbiased: divided by N −
//! 1), in f64.
//!
//! Accumulates Σx and Σx·xᵀ. f64 has 29 bits more than the features, so that their difference needs
//! no second pass. Rows are grouped into blocks by row number alone, so that results are
//! bit-identical for any batch size.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, get_global_parallelism};

use super::features::Rows;
use crate::error::{Result, hinted};
use crate::rng::{Purpose, Stream};

/// Rows per block.
const BLOCK: usize = 256;

/// Sums over rows of one width.
#[derive(Debug, Clone)]
pub struct Moments {
    count: usize,
    sum: Vec<f64>,
    /// Lower triangle of Σx·xᵀ.
    products: Mat<f64>,
    /// Rows of an incomplete block.
    waiting: Vec<f64>,
}

/// A normal distribution: what the Fréchet distance needs.
#[derive(Debug, Clone)]
pub struct Gaussian {
    pub mean: Vec<f64>,
    /// Symmetric.
    pub covariance: Mat<f64>,
}

impl Moments {
    pub fn new(width: usize) -> Self {
        Self {
            count: 0,
            sum: vec![0.0; width],
            products: Mat::zeros(width, width),
            waiting: Vec::new(),
        }
    }

    /// D.
    pub fn width(&self) -> usize {
        self.sum.len()
    }

    /// Number of rows so far.
    pub fn count(&self) -> usize {
        self.count
    }

    pub fn add(&mut self, row: &[f32]) {
        self.waiting.extend(row.iter().map(|&x| f64::from(x)));
        self.count += 1;
        if self.waiting.len() == BLOCK * self.width() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let width = self.width();
        let count = self.waiting.len() / width;
        for row in self.waiting.chunks_exact(width) {
            for (sum, &x) in self.sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
        let block = MatRef::from_row_major_slice(&self.waiting, count, width);
        matmul(
            self.products.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            block.transpose(),
            BlockStructure::Rectangular,
            block,
            BlockStructure::Rectangular,
            1.0,
            get_global_parallelism(),
        );
        self.waiting.clear();
    }

    /// The sums of all `others`, added in order.
    fn total<'a>(others: impl IntoIterator<Item = &'a Moments>, width: usize) -> Self {
        let mut total = Moments::new(width);
        for other in others {
            let mut other = other.clone();
            other.flush();
            total.count += other.count;
            for (sum, x) in total.sum.iter_mut().zip(&other.sum) {
                *sum += x;
            }
            total.products += &other.products;
        }
        total
    }

    /// μ and Σ.
    ///
    /// Errors: fewer than two rows; features that are not finite.
    pub fn gaussian(&self) -> Result<Gaussian> {
        Self::total([self], self.width()).finish()
    }

    fn finish(self) -> Result<Gaussian> {
        let n = self.count as f64;
        if self.count < 2 {
            return Err(hinted(
                format!(
                    "{} image: there is no covariance of fewer than two",
                    self.count
                ),
                "name more images",
            ));
        }
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / n).collect();
        let products = self.products;
        let covariance = Mat::from_fn(mean.len(), mean.len(), |i, j| {
            let (i, j) = (i.max(j), i.min(j));
            (products[(i, j)] - n * mean[i] * mean[j]) / (n - 1.0)
        });
        let gaussian = Gaussian { mean, covariance };
        gaussian.check("the features")?;
        Ok(gaussian)
    }
}

impl Gaussian {
    /// D.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// The distribution of all rows.
    pub fn of(rows: &Rows) -> Result<Self> {
        let mut moments = Moments::new(rows.width);
        rows.iter().for_each(|row| moments.add(row));
        moments.gaussian()
    }

    /// Refuses values that are not finite; `what` names them.
    pub fn check(&self, what: &str) -> Result<()> {
        let values = self.mean.iter().copied();
        let column = |j| self.covariance.col(j).iter().copied();
        if values
            .chain((0..self.width()).flat_map(column))
            .all(f64::is_finite)
        {
            return Ok(());
        }
        Err(hinted(
            format!("{what}: mean or covariance is not finite"),
            "an image, the weights or the statistics file are damaged",
        ))
    }
}

/// How rows are divided into groups. Row i is of class i mod `period`. From every `count`
/// consecutive rows of a class, each group takes one, in an order drawn by `seed`.
///
/// Leaving out a group must leave out a random part of the samples. Groups in plain rotation would
/// be classes, and groups drawn regardless of class would not hold the same number of each class,
/// as the samples do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub period: usize,
    pub seed: u64,
}

impl Groups {
    /// All rows in one group.
    pub const ONE: Groups = Groups {
        count: 1,
        period: 1,
        seed: 0,
    };

    /// Class of a row, its block, and its position in the block.
    fn place(self, row: usize) -> (usize, usize, usize) {
        let (class, turn) = (row % self.period, row / self.period);
        (class, turn / self.count, turn % self.count)
    }

    /// The group of each of a class's rows in a block.
    fn order(self, class: usize, block: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.count).collect();
        let index = (block * self.period + class) as u64;
        let mut draws = Stream::new(self.seed, Purpose::Subset, index, 4).draws();
        draws.shuffle(&mut order);
        order
    }
}

/// Moments by group, so that each group can be left out.
#[derive(Debug, Clone)]
pub struct GroupedMoments {
    groups: Groups,
    moments: Vec<Moments>,
    count: usize,
    /// The current block's order, per class.
    orders: Vec<Vec<usize>>,
}

impl GroupedMoments {
    pub fn new(groups: Groups, width: usize) -> Self {
        Self {
            moments: vec![Moments::new(width); groups.count],
            count: 0,
            orders: vec![Vec::new(); groups.period],
            groups,
        }
    }

    pub fn add(&mut self, rows: &Rows) {
        for row in rows.iter() {
            let (class, block, place) = self.groups.place(self.count);
            if place == 0 {
                self.orders[class] = self.groups.order(class, block);
            }
            self.moments[self.orders[class][place]].add(row);
            self.count += 1;
        }
    }

    /// G.
    pub fn groups(&self) -> usize {
        self.groups.count
    }

    pub fn gaussian(&self) -> Result<Gaussian> {
        Moments::total(&self.moments, self.moments[0].width()).finish()
    }

    /// The distribution of all rows except those of one group.
    pub fn without(&self, group: usize) -> Result<Gaussian> {
        let others = self.moments.iter().enumerate();
        let others = others.filter(|(g, _)| *g != group).map(|(_, m)| m);
        Moments::total(others, self.moments[0].width()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Rows {
        let values = [1.0f32, 2.0, 3.0, 5.0, 4.0, 1.0, 0.5, 9.0, 2.0, 2.0];
        Rows {
            width: 2,
            values: values.to_vec(),
        }
    }

    #[test]
    fn mean_and_covariance_are_numpys() -> Result<()> {
        // numpy.mean and numpy.cov(rowvar=False) of the rows above.
        let gaussian = Gaussian::of(&rows())?;
        assert_eq!(gaussian.mean, [2.1, 3.8]);
        let expected = Mat::from_fn(2, 2, |i, j| [[2.05, -2.6], [-2.6, 10.7]][i][j]);
        assert!((gaussian.covariance - expected).norm_l2() < 1e-12);
        Ok(())
    }

    #[test]
    fn groups_make_up_the_whole_and_can_be_left_out() -> Result<()> {
        // The last blocks are incomplete: rows 0, 2, .. 22 and 1, 3, .. 21 in blocks of 5, 5, 2 and
        // 5, 5, 1.
        let mut values = vec![0f32; 23 * 2];
        Stream::new(7, Purpose::Noise, 0, 0).fill_normal(&mut values);
        let rows = Rows { width: 2, values };
        let groups = Groups {
            count: 5,
            period: 2,
            seed: 3,
        };
        let mut grouped = GroupedMoments::new(groups, 2);
        // In two parts: a row's group depends only on its number.
        let (first, last) = rows.values.split_at(7 * 2);
        for values in [first.to_vec(), last.to_vec()] {
            grouped.add(&Rows { width: 2, values });
        }
        let near = |a: &Gaussian, b: &Gaussian| {
            let means = a.mean.iter().zip(&b.mean);
            means.into_iter().all(|(a, b)| (a - b).abs() < 1e-12)
                && (&a.covariance - &b.covariance).norm_l2() < 1e-12
        };
        assert!(near(&grouped.gaussian()?, &Gaussian::of(&rows)?));
        for group in 0..5 {
            let others = rows.iter().enumerate();
            let others = others.filter(|&(i, _)| {
                let (class, block, place) = groups.place(i);
                groups.order(class, block)[place] != group
            });
            let values = others.flat_map(|(_, row)| row.to_vec()).collect();
            let rest = Rows { width: 2, values };
            assert!((17..=19).contains(&rest.count()));
            assert!(near(&grouped.without(group)?, &Gaussian::of(&rest)?));
        }
        Ok(())
    }

    #[test]
    fn classes_in_turn_fall_into_all_groups_alike() {
        // Row i is of class i mod 20.
        let classes = 20;
        let mut values = vec![0f32; 2000 * classes];
        for (i, row) in values.chunks_exact_mut(classes).enumerate() {
            row[i % classes] = 1.0;
        }
        let rows = Rows {
            width: classes,
            values,
        };
        let mut orders = Vec::new();
        for seed in 0..2 {
            let groups = Groups {
                count: 10,
                period: classes,
                seed,
            };
            let mut grouped = GroupedMoments::new(groups, classes);
            grouped.add(&rows);
            for moments in &grouped.moments {
                let mean = moments.gaussian().expect("200 rows").mean;
                // Ten of each class.
                assert!(mean.iter().all(|part| (part * 200.0 - 10.0).abs() < 1e-9));
            }
            orders.push((0..10).map(|b| groups.order(0, b)).collect::<Vec<_>>());
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn a_covariance_needs_two_finite_rows() {
        let one = Rows {
            width: 2,
            values: vec![1.0, 2.0],
        };
        let error = Gaussian::of(&one).unwrap_err().to_string();
        assert!(error.contains("fewer than two"), "{error}");
        let damaged = Rows {
            width: 1,
            values: vec![1.0, f32::NAN, 2.0],
        };
        let error = Gaussian::of(&damaged).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{error}");
    }
}
