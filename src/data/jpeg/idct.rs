//! The inverse DCT: libjpeg's accurate integer method, in the 16-bit arithmetic of its vector code.
//!
//! Loeffler, Ligtenberg and Moschytz's factorization with 13-bit constants: columns first, then
//! rows. libjpeg-turbo uses vectors of 16 bits, where multiplications wrap and the results of a
//! pass saturate. Only damaged or contrived files show the difference from wider arithmetic, but
//! these are bit-identical here too.

/// Rows of samples.
pub type Samples = [[u8; 8]; 8];

/// An implementation.
pub trait Idct: Copy {
    /// `block` and `steps` [8,8] in natural order.
    fn block(self, block: &[i16; 64], steps: &[i16; 64]) -> Samples;
}

/// Code that is compiled for the fastest implementation.
pub trait WithIdct {
    type Output;
    fn run(self, idct: impl Idct) -> Self::Output;
}

pub fn with_fastest<W: WithIdct>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(
            #[inline(always)]
            || work.run(avx::Vectors(simd)),
        );
    }
    work.run(Portable)
}

/// ×2¹³: 0.298631336, 0.390180644, 0.541196100, 0.765366865, 0.899976223, 1.175875602, 1.501321110,
/// 1.847759065, 1.961570560, 2.053119869, 2.562915447, 3.072711026.
const F_0_298: i32 = 2446;
const F_0_390: i32 = 3196;
const F_0_541: i32 = 4433;
const F_0_765: i32 = 6270;
const F_0_899: i32 = 7373;
const F_1_175: i32 = 9633;
const F_1_501: i32 = 12299;
const F_1_847: i32 = 15137;
const F_1_961: i32 = 16069;
const F_2_053: i32 = 16819;
const F_2_562: i32 = 20995;
const F_3_072: i32 = 25172;

/// Bits that a pass shifts out: constants have 13, and 2 more are kept between the passes.
const AFTER_COLUMNS: i32 = 11;
const AFTER_ROWS: i32 = 18;

/// A block in which only the DC coefficient is not zero.
#[inline(always)]
fn flat(dc: i16, step: i16) -> u8 {
    let value = i32::from(dc.wrapping_mul(step) << 2);
    (((value + 16) >> 5).clamp(-128, 127) + 128) as u8
}

/// Without vector instructions.
#[derive(Clone, Copy)]
pub struct Portable;

impl Idct for Portable {
    #[inline(always)]
    fn block(self, block: &[i16; 64], steps: &[i16; 64]) -> Samples {
        if block[1..].iter().all(|&c| c == 0) {
            return [[flat(block[0], steps[0]); 8]; 8];
        }
        let mut columns = [[0_i16; 8]; 8];
        let products: [i16; 64] = std::array::from_fn(|i| block[i].wrapping_mul(steps[i]));
        if block[8..].iter().all(|&c| c == 0) {
            columns = [std::array::from_fn(|x| products[x] << 2); 8];
        } else {
            for x in 0..8 {
                let column = std::array::from_fn(|y| products[8 * y + x]);
                for (row, value) in columns.iter_mut().zip(pass::<AFTER_COLUMNS>(column)) {
                    row[x] = value;
                }
            }
        }
        columns.map(|row| pass::<AFTER_ROWS>(row).map(|v| (v.clamp(-128, 127) + 128) as u8))
    }
}

fn pass<const SHIFT: i32>(x: [i16; 8]) -> [i16; 8] {
    let sum = |a: i32, b: i32| a.wrapping_add(b);
    let two = |a: i16, f: i32, b: i16, g: i32| sum(i32::from(a) * f, i32::from(b) * g);
    let [x0, x1, x2, x3, x4, x5, x6, x7] = x;
    let e0 = i32::from(x0.wrapping_add(x4)) << 13;
    let e1 = i32::from(x0.wrapping_sub(x4)) << 13;
    let e2 = two(x2, F_0_541, x6, F_0_541 - F_1_847);
    let e3 = two(x2, F_0_541 + F_0_765, x6, F_0_541);
    let even = [
        sum(e0, e3),
        sum(e1, e2),
        e1.wrapping_sub(e2),
        e0.wrapping_sub(e3),
    ];
    let (z3, z4) = (x7.wrapping_add(x3), x5.wrapping_add(x1));
    let w3 = two(z3, F_1_175 - F_1_961, z4, F_1_175);
    let w4 = two(z3, F_1_175, z4, F_1_175 - F_0_390);
    let odd = [
        sum(two(x7, -F_0_899, x1, F_1_501 - F_0_899), w4),
        sum(two(x5, -F_2_562, x3, F_3_072 - F_2_562), w3),
        sum(two(x5, F_2_053 - F_2_562, x3, -F_2_562), w4),
        sum(two(x7, F_0_298 - F_0_899, x1, -F_0_899), w3),
    ];
    std::array::from_fn(|i| {
        let value = match i < 4 {
            true => sum(even[i], odd[i]),
            false => even[7 - i].wrapping_sub(odd[7 - i]),
        };
        let value = sum(value, 1 << (SHIFT - 1)) >> SHIFT;
        value.clamp(i16::MIN.into(), i16::MAX.into()) as i16
    })
}

#[cfg(target_arch = "x86_64")]
mod avx {
    use std::arch::x86_64::__m128i;

    use pulp::x86::V3;

    use super::*;

    /// Rows of eight 16-bit numbers in vector registers.
    #[derive(Clone, Copy)]
    pub struct Vectors(pub V3);

    impl Idct for Vectors {
        #[inline(always)]
        fn block(self, block: &[i16; 64], steps: &[i16; 64]) -> Samples {
            let s = self.0.sse2;
            let rows: [__m128i; 8] = pulp::cast(*block);
            let steps: [__m128i; 8] = pulp::cast(*steps);
            let or = |a, b| s._mm_or_si128(a, b);
            let is_zero = |v| self.0.sse4_1._mm_testz_si128(v, v) == 1;
            let below = or(
                or(or(rows[1], rows[2]), or(rows[3], rows[4])),
                or(or(rows[5], rows[6]), rows[7]),
            );
            let rows: [__m128i; 8] = std::array::from_fn(|i| s._mm_mullo_epi16(rows[i], steps[i]));
            let columns = if is_zero(below) {
                let first = s._mm_slli_epi16::<2>(rows[0]);
                if block[1..8].iter().all(|&c| c == 0) {
                    return [[flat(block[0], pulp::cast::<_, [i16; 64]>(steps)[0]); 8]; 8];
                }
                self.transposed([first; 8])
            } else {
                self.transposed(self.pass::<AFTER_COLUMNS>(rows))
            };
            let rows = self.transposed(self.pass::<AFTER_ROWS>(columns));
            let middle = s._mm_set1_epi8(-128);
            let pairs: [__m128i; 4] = std::array::from_fn(|i| {
                s._mm_xor_si128(s._mm_packs_epi16(rows[2 * i], rows[2 * i + 1]), middle)
            });
            pulp::cast(pairs)
        }
    }

    impl Vectors {
        #[inline(always)]
        fn transposed(self, rows: [__m128i; 8]) -> [__m128i; 8] {
            let s = self.0.sse2;
            let [a, b, c, d, e, f, g, h] = rows;
            let (ab, cd) = (s._mm_unpacklo_epi16(a, b), s._mm_unpacklo_epi16(c, d));
            let (ef, gh) = (s._mm_unpacklo_epi16(e, f), s._mm_unpacklo_epi16(g, h));
            let (ab2, cd2) = (s._mm_unpackhi_epi16(a, b), s._mm_unpackhi_epi16(c, d));
            let (ef2, gh2) = (s._mm_unpackhi_epi16(e, f), s._mm_unpackhi_epi16(g, h));
            let (l0, l1) = (s._mm_unpacklo_epi32(ab, cd), s._mm_unpackhi_epi32(ab, cd));
            let (h0, h1) = (s._mm_unpacklo_epi32(ef, gh), s._mm_unpackhi_epi32(ef, gh));
            let (l2, l3) = (
                s._mm_unpacklo_epi32(ab2, cd2),
                s._mm_unpackhi_epi32(ab2, cd2),
            );
            let (h2, h3) = (
                s._mm_unpacklo_epi32(ef2, gh2),
                s._mm_unpackhi_epi32(ef2, gh2),
            );
            [
                s._mm_unpacklo_epi64(l0, h0),
                s._mm_unpackhi_epi64(l0, h0),
                s._mm_unpacklo_epi64(l1, h1),
                s._mm_unpackhi_epi64(l1, h1),
                s._mm_unpacklo_epi64(l2, h2),
                s._mm_unpackhi_epi64(l2, h2),
                s._mm_unpacklo_epi64(l3, h3),
                s._mm_unpackhi_epi64(l3, h3),
            ]
        }

        /// a·f + b·g for all lanes, in halves of 32 bits.
        #[inline(always)]
        fn two(self, a: __m128i, f: i32, b: __m128i, g: i32) -> [__m128i; 2] {
            let s = self.0.sse2;
            let factors = s._mm_set1_epi32(g << 16 | f & 0xFFFF);
            [
                s._mm_madd_epi16(s._mm_unpacklo_epi16(a, b), factors),
                s._mm_madd_epi16(s._mm_unpackhi_epi16(a, b), factors),
            ]
        }

        #[inline(always)]
        fn pass<const SHIFT: i32>(self, x: [__m128i; 8]) -> [__m128i; 8] {
            let s = self.0.sse2;
            let sum = |a: [__m128i; 2], b: [__m128i; 2]| {
                [s._mm_add_epi32(a[0], b[0]), s._mm_add_epi32(a[1], b[1])]
            };
            let difference = |a: [__m128i; 2], b: [__m128i; 2]| {
                [s._mm_sub_epi32(a[0], b[0]), s._mm_sub_epi32(a[1], b[1])]
            };
            // Placed in the high half of 32 bits, then shifted down to ×2¹³.
            let widened = |a: __m128i| {
                let zero = s._mm_setzero_si128();
                [
                    s._mm_srai_epi32::<3>(s._mm_unpacklo_epi16(zero, a)),
                    s._mm_srai_epi32::<3>(s._mm_unpackhi_epi16(zero, a)),
                ]
            };
            let [x0, x1, x2, x3, x4, x5, x6, x7] = x;
            let e0 = widened(s._mm_add_epi16(x0, x4));
            let e1 = widened(s._mm_sub_epi16(x0, x4));
            let e2 = self.two(x2, F_0_541, x6, F_0_541 - F_1_847);
            let e3 = self.two(x2, F_0_541 + F_0_765, x6, F_0_541);
            let even = [
                sum(e0, e3),
                sum(e1, e2),
                difference(e1, e2),
                difference(e0, e3),
            ];
            let (z3, z4) = (s._mm_add_epi16(x7, x3), s._mm_add_epi16(x5, x1));
            let w3 = self.two(z3, F_1_175 - F_1_961, z4, F_1_175);
            let w4 = self.two(z3, F_1_175, z4, F_1_175 - F_0_390);
            let odd = [
                sum(self.two(x7, -F_0_899, x1, F_1_501 - F_0_899), w4),
                sum(self.two(x5, -F_2_562, x3, F_3_072 - F_2_562), w3),
                sum(self.two(x5, F_2_053 - F_2_562, x3, -F_2_562), w4),
                sum(self.two(x7, F_0_298 - F_0_899, x1, -F_0_899), w3),
            ];
            let half = s._mm_set1_epi32(1 << (SHIFT - 1));
            std::array::from_fn(|i| {
                let value = match i < 4 {
                    true => sum(even[i], odd[i]),
                    false => difference(even[7 - i], odd[7 - i]),
                };
                let [low, high] = sum(value, [half, half]);
                match SHIFT {
                    AFTER_COLUMNS => s._mm_packs_epi32(
                        s._mm_srai_epi32::<AFTER_COLUMNS>(low),
                        s._mm_srai_epi32::<AFTER_COLUMNS>(high),
                    ),
                    _ => s._mm_packs_epi32(
                        s._mm_srai_epi32::<AFTER_ROWS>(low),
                        s._mm_srai_epi32::<AFTER_ROWS>(high),
                    ),
                }
            })
        }
    }
}
