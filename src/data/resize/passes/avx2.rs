//! The passes with AVX2. Products of pairs of i16 are added to i32: a weight is h·2¹⁵ + l with
//! 0 ≤ l < 2¹⁵, and Σ p·w = 2¹⁵·Σ p·h + Σ p·l, modulo 2³² as every i32 sum.
//!
//! What is called from a vectorised loop is `inline(always)`, and no closure: a closure that a
//! function of the standard library calls is compiled without AVX2.

use std::arch::x86_64::{__m128i, __m256i};

use pulp::cast;
use pulp::x86::V3;

use super::{FixedTaps, HALF, PRECISION, Part};

/// Bytes of a line that the vertical pass takes at a time: a line has no fewer.
pub(super) const COLUMNS: usize = 32;

/// Lines that the horizontal pass takes at a time, so that a weight is read once for four.
const LINES: usize = 4;

/// Pixels that it takes at a time.
const GROUP: usize = 4;

/// Bits of a weight's lower part: as many as are positive in an i16.
const LOW: u32 = 15;

/// Of a load of five pixels the first and the second, then the third and the fourth, zero between
/// their bytes: [r0 r1 g0 g1 b0 b1 - -] as i16.
const PAIRS: [i8; 32] = {
    let mut order = [-1; 32];
    let mut i = 0;
    while i < 12 {
        let (pair, channel, which) = (i / 6, i / 2 % 3, i % 2);
        order[pair * 16 + channel * 4 + which * 2] = (pair * 6 + which * 3 + channel) as i8;
        i += 1;
    }
    order
};

/// Lower and upper parts of `N` weights; those beyond `weights` are zero.
fn parts<const N: usize>(weights: &[i32]) -> [[i16; N]; 2] {
    let at = |i: usize| weights.get(i).copied().unwrap_or(0);
    [
        std::array::from_fn(|i| (at(i) & ((1 << LOW) - 1)) as i16),
        std::array::from_fn(|i| (at(i) >> LOW) as i16),
    ]
}

type Weights = [[i16; GROUP]; 2];

/// What each output pixel of the horizontal pass takes.
struct Columns {
    /// The byte of a line that its pixels begin at.
    at: Vec<usize>,
    /// Groups of weights for each.
    each: usize,
    weights: Vec<Weights>,
}

pub(super) fn horizontal(simd: V3, part: Part, taps: &FixedTaps, out: &mut [u8]) {
    let each = taps.most().div_ceil(GROUP);
    let groups = |weights| {
        let weights: &[i32] = weights;
        (0..each).map(|g| parts(weights.get(g * GROUP..).unwrap_or_default()))
    };
    let columns = Columns {
        at: taps.iter().map(|(at, _)| 3 * (at - part.at.0)).collect(),
        each,
        weights: taps
            .iter()
            .flat_map(|(_, w)| groups(w).collect::<Vec<_>>())
            .collect(),
    };
    // Loops of known length are faster.
    match each {
        1 => horizontal_of::<1>(simd, part, &columns, out),
        2 => horizontal_of::<2>(simd, part, &columns, out),
        3 => horizontal_of::<3>(simd, part, &columns, out),
        4 => horizontal_of::<4>(simd, part, &columns, out),
        _ => horizontal_of::<0>(simd, part, &columns, out),
    }
}

/// [`horizontal`] for `EACH` groups of weights, any number if that is 0.
fn horizontal_of<const EACH: usize>(simd: V3, part: Part, columns: &Columns, out: &mut [u8]) {
    let each = if EACH == 0 { columns.each } else { EACH };
    let (width, to) = (3 * part.size.0, 3 * columns.at.len());
    // Loads may reach past a line: over weights of zero, and 4 bytes more.
    let pitch = width + 3 * GROUP * each + 4;
    let mut lines = vec![0u8; LINES * pitch];
    // A pixel is stored with a byte more.
    let mut made = vec![0u8; LINES * (to + 1)];
    let mut source = part.lines();
    simd.vectorize(
        #[inline(always)]
        || {
            for out in out.chunks_mut(LINES * to) {
                for line in lines.chunks_exact_mut(pitch) {
                    let Some(from) = source.next() else { break };
                    line[..width].copy_from_slice(from);
                }
                let (a, rest) = lines.split_at(pitch);
                let (b, rest) = rest.split_at(pitch);
                let (c, d) = rest.split_at(pitch);
                let (made_a, rest) = made.split_at_mut(to + 1);
                let (made_b, rest) = rest.split_at_mut(to + 1);
                let (made_c, made_d) = rest.split_at_mut(to + 1);
                let mut x = 0;
                for (&at, weights) in columns.at.iter().zip(columns.weights.chunks_exact(each)) {
                    let bytes = 3 * GROUP * each + 4;
                    let lines = [
                        &a[at..at + bytes],
                        &b[at..at + bytes],
                        &c[at..at + bytes],
                        &d[at..at + bytes],
                    ];
                    let pixels = four_pixels(simd, lines, &weights[..each]);
                    made_a[x..x + 4].copy_from_slice(&pixels[0]);
                    made_b[x..x + 4].copy_from_slice(&pixels[1]);
                    made_c[x..x + 4].copy_from_slice(&pixels[2]);
                    made_d[x..x + 4].copy_from_slice(&pixels[3]);
                    x += 3;
                }
                for (line, made) in out.chunks_exact_mut(to).zip(made.chunks_exact(to + 1)) {
                    line.copy_from_slice(&made[..to]);
                }
            }
        },
    );
}

/// A pixel of each of four lines, a byte more each.
#[inline(always)]
fn four_pixels(simd: V3, lines: [&[u8]; LINES], weights: &[Weights]) -> [[u8; 4]; LINES] {
    let (pairs, zero) = (cast::<_, __m256i>(PAIRS), simd.avx._mm256_setzero_si256());
    let to_low: __m256i = cast([0, 0, 0, 0, 1, 1, 1, 1i32]);
    let to_high: __m256i = cast([2, 2, 2, 2, 3, 3, 3, 3i32]);
    let mut low_sums = [zero; LINES];
    let mut high_sums = [zero; LINES];
    for (g, group) in weights.iter().enumerate() {
        let group = simd.avx._mm256_castsi128_si256(cast(*group));
        let low = simd.avx2._mm256_permutevar8x32_epi32(group, to_low);
        let high = simd.avx2._mm256_permutevar8x32_epi32(group, to_high);
        for l in 0..LINES {
            let Some(bytes) = lines[l][3 * GROUP * g..].first_chunk::<16>() else {
                unreachable!("lines have bytes to spare");
            };
            let bytes = simd.avx2._mm256_broadcastsi128_si256(cast(*bytes));
            let bytes = simd.avx2._mm256_shuffle_epi8(bytes, pairs);
            let product = simd.avx2._mm256_madd_epi16(bytes, low);
            low_sums[l] = simd.avx2._mm256_add_epi32(low_sums[l], product);
            let product = simd.avx2._mm256_madd_epi16(bytes, high);
            high_sums[l] = simd.avx2._mm256_add_epi32(high_sums[l], product);
        }
    }
    let sse = simd.sse2;
    let half = sse._mm_set1_epi32(HALF);
    let mut rounded = [cast::<_, __m128i>([0u8; 16]); LINES];
    for l in 0..LINES {
        let sum = whole(simd, low_sums[l], high_sums[l]);
        let first = simd.avx._mm256_castsi256_si128(sum);
        let second = simd.avx2._mm256_extracti128_si256::<1>(sum);
        let sum = sse._mm_add_epi32(sse._mm_add_epi32(first, second), half);
        rounded[l] = sse._mm_srai_epi32::<{ PRECISION as i32 }>(sum);
    }
    let ab = sse._mm_packs_epi32(rounded[0], rounded[1]);
    let cd = sse._mm_packs_epi32(rounded[2], rounded[3]);
    cast(sse._mm_packus_epi16(ab, cd))
}

/// The sums of products with whole weights.
#[inline(always)]
fn whole(simd: V3, low: __m256i, high: __m256i) -> __m256i {
    let high = simd.avx2._mm256_slli_epi32::<{ LOW as i32 }>(high);
    simd.avx2._mm256_add_epi32(low, high)
}

pub(super) fn vertical(simd: V3, part: Part, taps: &FixedTaps, out: &mut [u8]) {
    let width = 3 * part.size.0;
    let mut pairs: Vec<[[i16; 2]; 2]> = Vec::new();
    for (line, (first, weights)) in out.chunks_exact_mut(width).zip(taps.iter()) {
        pairs.clear();
        pairs.extend(weights.chunks(2).map(parts));
        let lines = &part.bytes[(first - part.at.1) * part.pitch..];
        simd.vectorize(
            #[inline(always)]
            || {
                for chunk in 0..width.div_ceil(COLUMNS) {
                    // The last one ends where the line does, and may have begun in the one before.
                    let from = (chunk * COLUMNS).min(width - COLUMNS);
                    let pixels =
                        column_pixels(simd, lines, part.pitch, from, weights.len(), &pairs);
                    line[from..from + COLUMNS].copy_from_slice(&pixels);
                }
            },
        );
    }
}

/// 32 bytes of a line, from byte `from` of `count` lines.
#[inline(always)]
fn column_pixels(
    simd: V3,
    lines: &[u8],
    pitch: usize,
    from: usize,
    count: usize,
    pairs: &[[[i16; 2]; 2]],
) -> [u8; COLUMNS] {
    let avx2 = simd.avx2;
    let zero = simd.avx._mm256_setzero_si256();
    let mut low_sums = [simd.avx._mm256_set1_epi32(HALF); 4];
    let mut high_sums = [zero; 4];
    for (pair, [low, high]) in pairs.iter().enumerate() {
        let low = simd.avx._mm256_set1_epi32(cast(*low));
        let high = simd.avx._mm256_set1_epi32(cast(*high));
        let first = load(lines, 2 * pair * pitch + from);
        // The weight of a line too many is zero.
        let second = load(lines, (2 * pair + 1).min(count - 1) * pitch + from);
        let (near, far) = (
            avx2._mm256_unpacklo_epi8(first, second),
            avx2._mm256_unpackhi_epi8(first, second),
        );
        let bytes = [
            avx2._mm256_unpacklo_epi8(near, zero),
            avx2._mm256_unpackhi_epi8(near, zero),
            avx2._mm256_unpacklo_epi8(far, zero),
            avx2._mm256_unpackhi_epi8(far, zero),
        ];
        for i in 0..4 {
            let product = avx2._mm256_madd_epi16(bytes[i], low);
            low_sums[i] = avx2._mm256_add_epi32(low_sums[i], product);
            let product = avx2._mm256_madd_epi16(bytes[i], high);
            high_sums[i] = avx2._mm256_add_epi32(high_sums[i], product);
        }
    }
    for i in 0..4 {
        let sum = whole(simd, low_sums[i], high_sums[i]);
        low_sums[i] = avx2._mm256_srai_epi32::<{ PRECISION as i32 }>(sum);
    }
    let near = avx2._mm256_packs_epi32(low_sums[0], low_sums[1]);
    let far = avx2._mm256_packs_epi32(low_sums[2], low_sums[3]);
    cast(avx2._mm256_packus_epi16(near, far))
}

#[inline(always)]
fn load(bytes: &[u8], at: usize) -> __m256i {
    let Some(bytes) = bytes[at..].first_chunk::<COLUMNS>() else {
        unreachable!("every line has 32 bytes");
    };
    cast(*bytes)
}
