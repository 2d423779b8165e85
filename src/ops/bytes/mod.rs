//! Pixels in [-1,1] as bytes: round((x + 1)·127.5), ties to even as in PyTorch, clamped [ours].
//!
//! On a GPU, `cuda::Bytes` takes whole maps [B,h,w,3·p²] to images [B,h·p,w·p,3] and says which of
//! them are not finite.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
pub mod cuda;

/// NaN becomes 0: whoever rounds has to look for it.
pub fn byte(x: f32) -> u8 {
    // `as` saturates.
    ((x + 1.0) * 127.5).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use super::byte;

    #[test]
    fn ties_round_to_even_and_what_lies_outside_is_clamped() {
        let at = |byte: f32| byte / 127.5 - 1.0;
        for (x, expected) in [(-2.0, 0), (-1.0, 0), (0.0, 128), (1.0, 255), (7.0, 255)] {
            assert_eq!(byte(x), expected, "{x}");
        }
        for value in 0..=255u8 {
            assert_eq!(byte(at(value.into())), value);
        }
        assert_eq!(byte(f32::NAN), 0);
    }
}
