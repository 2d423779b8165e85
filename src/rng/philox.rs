//! Philox 4×32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), one
//! block or many.

/// Blocks computed in parallel: one AVX-512 vector, two AVX2 vectors.
pub const LANES: usize = 16;

const ROUNDS: usize = 10;
const MULTIPLY: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// High and low half of a 32×32-bit product.
#[inline(always)]
fn product(a: u32, b: u32) -> (u32, u32) {
    let p = u64::from(a) * u64::from(b);
    ((p >> 32) as u32, p as u32)
}

/// The four words of one counter.
pub fn block(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let (high0, low0) = product(MULTIPLY[0], c[0]);
        let (high1, low1) = product(MULTIPLY[1], c[2]);
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// Blocks first .. first + [`LANES`]: word w of block l at [w][l].
///
/// A word is stored in 64 bits whose upper half is never read, so that a multiplication is one
/// instruction per lane.
#[allow(
    clippy::needless_range_loop,
    reason = "one lane number over several arrays is what becomes vectors"
)]
#[inline(always)]
pub fn blocks(first: u32, counter: [u32; 3], mut key: [u32; 2]) -> [[u32; LANES]; 4] {
    let mut c = [[0u64; LANES]; 4];
    for l in 0..LANES {
        c[0][l] = u64::from(first.wrapping_add(l as u32));
        for w in 0..3 {
            c[w + 1][l] = u64::from(counter[w]);
        }
    }
    let low = |x: u64| x & u64::from(u32::MAX);
    for _ in 0..ROUNDS {
        let (key0, key1) = (u64::from(key[0]), u64::from(key[1]));
        for l in 0..LANES {
            let p0 = u64::from(MULTIPLY[0]) * low(c[0][l]);
            let p1 = u64::from(MULTIPLY[1]) * low(c[2][l]);
            c[0][l] = (p1 >> 32) ^ c[1][l] ^ key0;
            c[1][l] = p1;
            c[2][l] = (p0 >> 32) ^ c[3][l] ^ key1;
            c[3][l] = p0;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    let mut words = [[0u32; LANES]; 4];
    for w in 0..4 {
        for l in 0..LANES {
            words[w][l] = c[w][l] as u32;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_are_random123s() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [ones; 4],
                [ones; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                pi,
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(block(counter, key), expected);
            let [first, rest @ ..] = counter;
            let many = blocks(first, rest, key);
            for l in 0..LANES {
                let c = [first.wrapping_add(l as u32), rest[0], rest[1], rest[2]];
                assert_eq!(many.map(|word| word[l]), block(c, key));
            }
        }
    }
}
