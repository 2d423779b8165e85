//! Which micro-batches of a run a rank computes: number q belongs to rank q mod W.
//!
//! So a step's micro-batches, and the order in which their gradients are added, are the same for
//! every W that divides `accumulate`.

/// A rank's part of the micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    pub size: usize,
}

impl Share {
    /// All of them.
    pub const WHOLE: Share = Share { rank: 0, size: 1 };

    /// The number among all micro-batches of this rank's micro-batch number `own`.
    pub fn micro_batch(self, own: u64) -> u64 {
        own * self.size as u64 + self.rank as u64
    }

    /// The number among all examples of this rank's example number `own`, in micro-batches of
    /// `batch_size`.
    pub fn example(self, own: u64, batch_size: usize) -> u64 {
        let size = batch_size as u64;
        self.micro_batch(own / size) * size + own % size
    }
}

impl Share {
    /// How many of `all` examples are this rank's.
    pub fn examples_of(self, all: u64, batch_size: usize) -> u64 {
        let batch = batch_size as u64;
        let round = batch * self.size as u64;
        let rest = (all % round).saturating_sub(batch * self.rank as u64);
        all / round * batch + rest.min(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_disjoint_and_together_all_examples_in_order() {
        assert!((0..50).all(|n| Share::WHOLE.example(n, 7) == n));
        for (size, batch) in [(2, 3), (4, 1), (3, 5)] {
            let steps = 4;
            let mut all: Vec<u64> = (0..size)
                .flat_map(|rank| {
                    let share = Share { rank, size };
                    (0..steps * batch as u64).map(move |own| share.example(own, batch))
                })
                .collect();
            all.sort_unstable();
            let expected: Vec<u64> = (0..steps * (size * batch) as u64).collect();
            assert_eq!(all, expected, "{size} ranks, micro-batches of {batch}");
        }
        for (size, batch, all) in [(1, 4, 10), (2, 3, 19), (3, 5, 7), (4, 1, 3), (2, 4, 8)] {
            let mut numbers: Vec<u64> = (0..size)
                .flat_map(|rank| {
                    let share = Share { rank, size };
                    (0..share.examples_of(all, batch)).map(move |own| share.example(own, batch))
                })
                .collect();
            numbers.sort_unstable();
            assert!(numbers.into_iter().eq(0..all), "{all} of {size} ranks");
        }
        let second = Share { rank: 1, size: 2 };
        let own: Vec<u64> = (0..6).map(|n| second.example(n, 2)).collect();
        assert_eq!(own, [2, 3, 6, 7, 10, 11]);
    }
}
