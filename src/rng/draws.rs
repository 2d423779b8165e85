//! Sequential random numbers from a stream, for algorithms that need an unknown number of them.

use super::{Stream, transform};

/// The words of a stream in order.
#[derive(Debug, Clone)]
pub struct StreamRng {
    stream: Stream,
    block: u32,
    words: [u32; 4],
    used: usize,
}

impl StreamRng {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            block: 0,
            words: [0; 4],
            used: 4,
        }
    }

    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.words = self.stream.words(self.block);
            self.block = self.block.wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Uniform in (0,1), excluding both ends.
    pub fn uniform(&mut self) -> f32 {
        transform::unit(self.next_u32())
    }

    /// Uniform between `low` and `high`.
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        self.uniform().mul_add(high - low, low)
    }

    /// A uniform integer in 0..n (Lemire, "Fast random integer generation in an interval", 2019).
    ///
    /// Panics if n is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        assert!(n > 0, "there is no number below 0");
        loop {
            let product = u64::from(self.next_u32()) * u64::from(n);
            // Rejecting the 2³² mod n smallest low halves removes the bias.
            let low = product as u32;
            if low >= n || low >= n.wrapping_neg() % n {
                return (product >> 32) as u32;
            }
        }
    }

    /// Shuffles `items` uniformly (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn draws(index: u64) -> StreamRng {
        Stream::new(3, Purpose::Shuffle, index, 0).draws()
    }

    #[test]
    fn words_come_in_the_streams_order() {
        let stream = Stream::new(3, Purpose::Shuffle, 9, 0);
        let mut draws = stream.draws();
        for block in 0..3 {
            assert_eq!(
                stream.words(block),
                std::array::from_fn(|_| draws.next_u32())
            );
        }
    }

    #[test]
    fn below_favours_no_number() {
        // With n = 3·2³⁰, multiplying without rejection would give multiples of three twice as
        // often.
        let (n, total) = (3u32 << 30, 60_000);
        let mut draws = draws(0);
        let mut thirds = [0u32; 3];
        for _ in 0..total {
            let x = draws.below(n);
            assert!(x < n);
            thirds[(x % 3) as usize] += 1;
        }
        let spread = (f64::from(total) * (1.0 / 3.0) * (2.0 / 3.0)).sqrt();
        for count in thirds {
            assert!(
                (f64::from(count) - f64::from(total) / 3.0).abs() < 4.5 * spread,
                "{thirds:?}"
            );
        }
        let mut seen = [false; 7];
        (0..200).for_each(|_| seen[draws.below(7) as usize] = true);
        assert_eq!(seen, [true; 7]);
        assert_eq!(draws.below(1), 0);
    }

    #[test]
    fn a_shuffle_is_a_permutation_with_every_place_equally_likely() {
        let (n, rounds) = (5, 20_000);
        let mut counts = [[0u32; 5]; 5];
        for index in 0..rounds {
            let mut items: Vec<usize> = (0..n).collect();
            draws(index).shuffle(&mut items);
            for (place, &item) in items.iter().enumerate() {
                counts[place][item] += 1;
            }
            items.sort_unstable();
            assert_eq!(items, [0, 1, 2, 3, 4]);
        }
        let spread = (rounds as f64 * 0.2 * 0.8).sqrt();
        for count in counts.as_flattened() {
            assert!(
                (f64::from(*count) - 4000.0).abs() < 4.5 * spread,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn a_range_stays_inside() {
        let mut draws = draws(1);
        let values: Vec<f32> = (0..10_000).map(|_| draws.range(-2.0, 3.0)).collect();
        let (low, high) = (
            values.iter().copied().fold(f32::MAX, f32::min),
            values.iter().copied().fold(f32::MIN, f32::max),
        );
        assert!(low > -2.0 && low < -1.99 && high < 3.0 && high > 2.99);
    }
}
