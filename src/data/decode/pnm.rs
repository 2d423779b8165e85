//! PBM, PGM and PPM (P1 to P6): values from 0 to any maximum are scaled to 0 to 255, rounded as in
//! Pillow.

use image::RgbImage;

pub fn decode(
    bytes: &[u8],
    fits: impl Fn(u32, u32) -> Result<(), String>,
) -> Result<RgbImage, String> {
    let damaged = |what: &str| format!("damaged PNM: {what}");
    let mut reader = Reader { bytes, at: 2 };
    let kind = match bytes {
        [b'P', kind @ b'1'..=b'6', ..] => kind - b'0',
        _ => return Err("PNM not supported: PAM (P7)".to_string()),
    };
    let (text, samples) = (kind <= 3, if kind % 3 == 0 { 3 } else { 1 });
    let width = reader.number()?;
    let height = reader.number()?;
    let largest = if kind % 3 == 1 { 1 } else { reader.number()? };
    if width == 0 || height == 0 || !(1..=65535).contains(&largest) {
        return Err(damaged(&format!("{width}×{height}, maximum {largest}")));
    }
    fits(width, height)?;
    let count = width as usize * height as usize * samples;
    let scaled = |value: u32| {
        let value = f64::from(value.min(largest)) / f64::from(largest) * 255.0;
        value.round_ties_even() as u8
    };
    let table: Vec<u8> = (0..=largest).map(scaled).collect();
    let in_range = |value: u32| table.get(value as usize).copied();
    // A header may claim more than there is: a value takes a byte at least, or a bit.
    let mut values = Vec::with_capacity(match (kind, largest) {
        // What is copied as it is.
        (6, 255) => 0,
        _ => count.min(8 * bytes.len()),
    });
    if kind == 1 {
        for _ in 0..count {
            values.push(reader.bit()?);
        }
    } else if text {
        for _ in 0..count {
            let value = in_range(reader.number()?);
            values.push(value.ok_or_else(|| damaged("a value above its maximum"))?);
        }
    } else {
        let row = match kind {
            4 => (width as usize).div_ceil(8),
            _ if largest < 256 => width as usize * samples,
            _ => width as usize * samples * 2,
        };
        // One whitespace character ends the header.
        let data = bytes.get(reader.at + 1..).unwrap_or_default();
        let data = data
            .get(..row * height as usize)
            .ok_or_else(|| damaged("truncated"))?;
        if (kind, largest) == (6, 255) {
            return RgbImage::from_raw(width, height, data.to_vec())
                .ok_or_else(|| damaged("fewer pixels than it says"));
        }
        let white = table[largest as usize];
        for row in data.chunks_exact(row) {
            match (kind, largest) {
                (4, _) => values.extend((0..width as usize).map(|x| match row[x / 8] << (x % 8) {
                    0..128 => 255,
                    _ => 0,
                })),
                (_, ..256) => {
                    values.extend(row.iter().map(|&v| in_range(v.into()).unwrap_or(white)));
                }
                _ => values.extend(
                    row.as_chunks::<2>()
                        .0
                        .iter()
                        .map(|&two| in_range(u16::from_be_bytes(two).into()).unwrap_or(white)),
                ),
            }
        }
    }
    let rgb = match samples {
        1 => values.into_iter().flat_map(|v| [v; 3]).collect(),
        _ => values,
    };
    RgbImage::from_raw(width, height, rgb).ok_or_else(|| damaged("fewer pixels than it says"))
}

/// Reads numbers in text, between white space and comments.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn pass_space(&mut self) {
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'#' => {
                    let rest = &self.bytes[self.at..];
                    let line = rest
                        .iter()
                        .take_while(|&&b| b != b'\n' && b != b'\r')
                        .count();
                    self.at += line;
                }
                byte if byte.is_ascii_whitespace() => self.at += 1,
                _ => return,
            }
        }
    }

    fn number(&mut self) -> Result<u32, String> {
        self.pass_space();
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        std::str::from_utf8(&rest[..digits])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| "damaged PNM: expected a number".to_string())
    }

    /// A pixel of P1: 1 is black, and separators are optional.
    fn bit(&mut self) -> Result<u8, String> {
        self.pass_space();
        let bit = self.bytes.get(self.at);
        self.at += 1;
        match bit {
            Some(b'0') => Ok(255),
            Some(b'1') => Ok(0),
            _ => Err("damaged PNM: expected 0 or 1".to_string()),
        }
    }
}
