//! Elements of files as tensors: every type that a safetensors file or a `.pth` can hold, converted
//! to a type that candle has.
//!
//! Types that candle lacks become the next type that holds all their values: i8 → i16, u16 → u32,
//! u64 → i64, both 8-bit floats → f16. Values that no type can hold are refused by name.

use candle_core::{DType, Device, Tensor};
use half::f16;
use safetensors::Dtype;

/// Bytes per element; none for types with less than a byte per element.
pub fn width(dtype: Dtype) -> Option<usize> {
    let bits = dtype.bitsize();
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The tensor of `shape` with the little-endian elements `bytes`, on the CPU.
///
/// Errors say what is wrong, in words that follow the tensor's name.
pub fn tensor(dtype: Dtype, bytes: &[u8], shape: &[usize]) -> Result<Tensor, String> {
    let wrong = |e: candle_core::Error| e.to_string();
    let as_it_is = |dtype| Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu);
    match dtype {
        Dtype::BOOL | Dtype::U8 => as_it_is(DType::U8),
        Dtype::I16 => as_it_is(DType::I16),
        Dtype::I32 => as_it_is(DType::I32),
        Dtype::U32 => as_it_is(DType::U32),
        Dtype::I64 => as_it_is(DType::I64),
        Dtype::F16 => as_it_is(DType::F16),
        Dtype::BF16 => as_it_is(DType::BF16),
        Dtype::F32 => as_it_is(DType::F32),
        Dtype::F64 => as_it_is(DType::F64),
        Dtype::I8 => from(bytes, shape, |[b]: [u8; 1]| i16::from(b as i8)),
        Dtype::U16 => from(bytes, shape, |b| u32::from(u16::from_le_bytes(b))),
        Dtype::U64 => {
            let (values, _) = bytes.as_chunks();
            let values: Option<Vec<i64>> = values
                .iter()
                .map(|b| i64::try_from(u64::from_le_bytes(*b)).ok())
                .collect();
            let values = values.ok_or("has numbers beyond 2^63")?;
            Tensor::from_vec(values, shape, &Device::Cpu)
        }
        // Its byte is the upper byte of an f16.
        Dtype::F8_E5M2 => from(bytes, shape, |[b]: [u8; 1]| {
            f16::from_bits(u16::from(b) << 8)
        }),
        Dtype::F8_E4M3 => from(bytes, shape, |[b]: [u8; 1]| e4m3(b)),
        other => return Err(format!("has elements of type {other:?}, which is not read")),
    }
    .map_err(wrong)
}

fn from<const N: usize, T: candle_core::WithDType>(
    bytes: &[u8],
    shape: &[usize],
    element: impl Fn([u8; N]) -> T,
) -> candle_core::Result<Tensor> {
    let (elements, _) = bytes.as_chunks::<N>();
    let values: Vec<T> = elements.iter().map(|b| element(*b)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// PyTorch's float8_e4m3fn: no infinities, NaN where all bits but the sign are set, bias 7.
fn e4m3(bits: u8) -> f16 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    f16::from_f32(if bits >= 0x80 { -size } else { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
        let width = width(dtype).expect("whole bytes");
        let tensor = tensor(dtype, bytes, &[bytes.len() / width]).expect("it is read");
        let tensor = tensor.to_dtype(DType::F64).expect("numbers");
        tensor.to_vec1().expect("a row")
    }

    #[test]
    fn types_that_candle_lacks_keep_their_values() {
        assert_eq!(
            values(Dtype::I8, &[0, 127, 128, 255]),
            [0., 127., -128., -1.]
        );
        assert_eq!(values(Dtype::U16, &[1, 0, 255, 255]), [1., 65535.]);
        assert_eq!(values(Dtype::U64, &7u64.to_le_bytes()), [7.]);
        let beyond = tensor(Dtype::U64, &u64::MAX.to_le_bytes(), &[1]).unwrap_err();
        assert!(beyond.contains("2^63"), "{beyond}");
        let complex = tensor(Dtype::C64, &[0; 8], &[1]).unwrap_err();
        assert!(complex.contains("C64"), "{complex}");
    }

    /// Values from torch.tensor(bytes, dtype=torch.uint8).view(torch.float8_…).float().
    #[test]
    fn floats_of_eight_bits_are_pytorchs() {
        let bytes = [0x00, 0x01, 0x08, 0x38, 0x7e, 0xb9, 0xfe];
        let e4m3 = [0.0, 0.001953125, 0.015625, 1.0, 448.0, -1.125, -448.0];
        assert_eq!(values(Dtype::F8_E4M3, &bytes), e4m3);
        assert!(values(Dtype::F8_E4M3, &[0x7f])[0].is_nan());
        let bytes = [0x00, 0x01, 0x3c, 0x7b, 0x7c, 0xbd];
        let e5m2 = [0.0, 1.52587890625e-5, 1.0, 57344.0, f64::INFINITY, -1.25];
        assert_eq!(values(Dtype::F8_E5M2, &bytes), e5m2);
    }
}
