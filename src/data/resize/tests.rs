use super::*;

/// The image that scripts/test_images.py resamples with Pillow.
pub fn formula(width: u32, height: u32) -> RgbImage {
    let value = |x: u32, y: u32, c: u32| (x * x * 3 + y * y * 5 + x * y * 7 + c * 91) / 4;
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb(std::array::from_fn(|c| value(x, y, c as u32) as u8))
    })
}

const FILTERS: [(Filter, &str); 4] = [
    (Filter::Box, "box"),
    (Filter::Bilinear, "bilinear"),
    (Filter::Bicubic, "bicubic"),
    (Filter::Lanczos, "lanczos"),
];

fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new("tests/data/images").join(name)
}

#[test]
fn u8_is_equal_to_pillow() {
    for (filter, name) in FILTERS {
        let expected = image::open(golden(&format!("resize_{name}.png"))).unwrap();
        let found = resize(&formula(37, 29), 16, 33, filter);
        assert_eq!(found, expected.into_rgb8(), "{name}");
    }
}

#[test]
fn f32_is_equal_to_pillow() {
    let plane: Vec<f32> = formula(37, 29).pixels().map(|p| f32::from(p[1])).collect();
    for (filter, name) in FILTERS {
        let bytes = std::fs::read(golden(&format!("resize_{name}.f32"))).unwrap();
        let found = resize_f32(&plane, (37, 29), (9, 31), 1, filter);
        let expected: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-4, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn channels_do_not_mix() {
    let image = formula(21, 17);
    let values: Vec<f32> = image.as_raw().iter().map(|&p| f32::from(p)).collect();
    let together = resize_f32(&values, (21, 17), (8, 40), 3, Filter::Bicubic);
    for c in 0..3 {
        let plane: Vec<f32> = values.iter().skip(c).step_by(3).copied().collect();
        let alone = resize_f32(&plane, (21, 17), (8, 40), 1, Filter::Bicubic);
        assert!(together.iter().skip(c).step_by(3).eq(&alone));
    }
}

/// A line of Pillow's fixed-point sums for each output position: `resize` one number at a time.
fn line_slowly(line: &[u8], output: usize, filter: Filter) -> Vec<u8> {
    let taps = Taps::new(line.len(), output, filter, 0..output).fixed_point();
    let sums = taps.iter().map(|(first, weights)| {
        let products = weights.iter().zip(&line[first..]);
        let sum: i64 = products.map(|(w, p)| i64::from(*w) * i64::from(*p)).sum();
        ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
    });
    sums.collect()
}

fn resize_slowly(image: &RgbImage, width: usize, height: usize, filter: Filter) -> RgbImage {
    let (from_w, from_h) = (image.width() as usize, image.height() as usize);
    let mut out = RgbImage::new(width as u32, height as u32);
    for c in 0..3 {
        let plane: Vec<u8> = image.pixels().map(|p| p[c]).collect();
        let lines = plane.chunks(from_w);
        let narrow: Vec<Vec<u8>> = match from_w == width {
            true => lines.map(<[u8]>::to_vec).collect(),
            false => lines.map(|l| line_slowly(l, width, filter)).collect(),
        };
        for x in 0..width {
            let column: Vec<u8> = narrow.iter().map(|line| line[x]).collect();
            let column = match from_h == height {
                true => column,
                false => line_slowly(&column, height, filter),
            };
            for (y, p) in column.into_iter().enumerate() {
                out.get_pixel_mut(x as u32, y as u32)[c] = p;
            }
        }
    }
    out
}

/// Pixels of all values in no order, black and white beside each other, so that sums overshoot.
fn noise(width: u32, height: u32) -> RgbImage {
    let mut state = 0x9e37_79b9_u32;
    RgbImage::from_fn(width, height, |_, _| {
        image::Rgb(std::array::from_fn(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match state >> 30 {
                0 => 0,
                1 => 255,
                _ => (state >> 16) as u8,
            }
        }))
    })
}

#[test]
fn any_window_of_any_size_has_the_bits_of_the_whole() {
    let sizes = [
        ((37, 29), (16, 33)),
        ((500, 13), (97, 7)),
        ((7, 90), (70, 11)),
        ((64, 64), (64, 20)),
        ((31, 50), (90, 50)),
        ((1, 1), (5, 9)),
        ((66, 3), (1, 3)),
        ((300, 5), (2, 5)),
    ];
    for ((from_w, from_h), (width, height)) in sizes {
        let image = noise(from_w, from_h);
        for (filter, name) in FILTERS {
            let whole = resize_slowly(&image, width, height, filter);
            let step = Step {
                width,
                height,
                filter,
            };
            let windows = [
                (0..width, 0..height),
                (width / 3..width, height / 2..height),
                (0..width.div_ceil(2), 0..height.div_ceil(3)),
                (width / 2..width / 2 + 1, height / 2..height / 2 + 1),
            ];
            for (columns, rows) in windows {
                let (x, y) = (columns.start as u32, rows.start as u32);
                let (w, h) = (columns.len() as u32, rows.len() as u32);
                let expected = image::imageops::crop_imm(&whole, x, y, w, h).to_image();
                let window = Window { columns, rows };
                let found = resize_window(&image, &[step], window.clone());
                assert!(
                    found == expected,
                    "{name}, {from_w}×{from_h} to {width}×{height}, {window:?}"
                );
            }
        }
    }
}

#[test]
fn steps_pass_on_what_later_ones_need() {
    let image = noise(131, 97);
    let steps = [
        (65, 48, Filter::Box),
        (32, 24, Filter::Box),
        (27, 20, Filter::Bicubic),
    ]
    .map(|(width, height, filter)| Step {
        width,
        height,
        filter,
    });
    let each = steps.iter().fold(image.clone(), |image, step| {
        resize_slowly(&image, step.width, step.height, step.filter)
    });
    let expected = image::imageops::crop_imm(&each, 5, 0, 20, 20).to_image();
    let window = Window {
        columns: 5..25,
        rows: 0..20,
    };
    assert!(resize_window(&image, &steps, window) == expected);
    let cut = Window {
        columns: 100..131,
        rows: 90..97,
    };
    let expected = image::imageops::crop_imm(&image, 100, 90, 31, 7).to_image();
    assert!(resize_window(&image, &[], cut) == expected);
}

#[test]
fn every_processor_gives_the_same_bits() {
    let image = noise(101, 6);
    for (filter, name) in FILTERS {
        for output in [1, 40, 101, 250] {
            let taps = Taps::new(101, output, filter, output / 4..output);
            let reach = taps.reach();
            let part = Part {
                bytes: &image.as_raw()[3 * reach.start..],
                pitch: 3 * 101,
                at: (reach.start, 0),
                size: (reach.len(), 6),
            };
            let taps = taps.fixed_point();
            let mut plain = vec![0; 6 * 3 * taps.len()];
            passes::horizontal_anywhere(part, &taps, &mut plain);
            assert_eq!(horizontal(part, &taps), plain, "{name} to {output}");
            // Lines shorter than a vector, a little longer, and several.
            for width in [6, 11, 40] {
                let image = noise(width, 101);
                let part = Part {
                    bytes: &image.as_raw()[reach.start * 3 * width as usize..],
                    pitch: 3 * width as usize,
                    at: (0, reach.start),
                    size: (width as usize, reach.len()),
                };
                let mut plain = vec![0; 3 * width as usize * taps.len()];
                passes::vertical_anywhere(part, &taps, &mut plain);
                assert_eq!(vertical(part, &taps), plain, "{name} to {output}");
            }
        }
    }
}
