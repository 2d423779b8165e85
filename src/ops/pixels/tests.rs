use super::*;
use crate::ops::testing::{assert_refused, bits};

fn tensor(bytes: Bytes) -> Result<Tensor> {
    Pixels::new(&Device::Cpu).tensor(bytes)
}

#[test]
fn bytes_become_values_from_minus_one_to_one() -> Result<()> {
    let image: Vec<u8> = (0..=254).collect();
    let images: [&[u8]; 1] = [&image];
    let bytes = Bytes {
        height: 5,
        width: 17,
        images: &images,
        mirrored: &[false],
    };
    let found = tensor(bytes)?;
    assert_eq!(found.dims(), [1, 5, 17, 3]);
    let expected: Vec<u32> = image
        .iter()
        .map(|&p| (f32::from(p) / 127.5 - 1.0).to_bits())
        .collect();
    let found = bits(&found);
    assert_eq!(found, expected);
    assert_eq!(f32::from_bits(found[0]), -1.0);
    Ok(())
}

#[test]
fn an_image_is_mirrored_where_asked_and_no_other() -> Result<()> {
    // 40 lines of 300 pixels: more than a block of work.
    let (height, width) = (40, 300);
    let image: Vec<u8> = (0..height * width * 3)
        .map(|i| (i * 37 / 5) as u8)
        .collect();
    let images: [&[u8]; 3] = [&image; 3];
    let bytes = Bytes {
        height,
        width,
        images: &images,
        mirrored: &[false, true, false],
    };
    let found = bits(&tensor(bytes)?);
    let (first, rest) = found.split_at(image.len());
    let (second, third) = rest.split_at(image.len());
    assert_eq!(first, third);
    for (line, back) in first.chunks(3 * width).zip(second.chunks(3 * width)) {
        let pixels: Vec<u32> = line.chunks(3).rev().flatten().copied().collect();
        assert_eq!(pixels, back);
    }
    assert_ne!(first, second);
    Ok(())
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let images: [&[u8]; 2] = [&[0; 12], &[0; 11]];
    let bytes = Bytes {
        height: 2,
        width: 2,
        images: &images,
        mirrored: &[false, false],
    };
    assert_refused(tensor(bytes), &["pixels", "11 bytes", "2×2"]);
    let images: [&[u8]; 1] = [&[0; 12]];
    let bytes = Bytes {
        images: &images,
        ..bytes
    };
    assert_refused(tensor(bytes), &["1 images, 2 said"]);
}
