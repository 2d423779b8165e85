//! The head of a `.npy` array: magic, version, and a Python dictionary of type, order and shape.

use std::io::Read;

use crate::error::{Context, Result, hinted};

/// A head longer than this is no head.
const LONGEST: usize = 1 << 16;

/// Element types, by NumPy's descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    U8,
    I64,
    F16,
    F32,
    F64,
}

impl Element {
    const ALL: [Element; 5] = [
        Element::U8,
        Element::I64,
        Element::F16,
        Element::F32,
        Element::F64,
    ];

    pub fn descriptor(self) -> &'static str {
        match self {
            Element::U8 => "|u1",
            Element::I64 => "<i8",
            Element::F16 => "<f2",
            Element::F32 => "<f4",
            Element::F64 => "<f8",
        }
    }

    /// Bytes.
    pub fn size(self) -> usize {
        match self {
            Element::U8 => 1,
            Element::F16 => 2,
            Element::F32 => 4,
            Element::I64 | Element::F64 => 8,
        }
    }

    fn named(descriptor: &str) -> Option<Self> {
        let same = |e: &Element| e.descriptor()[1..] == *descriptor.get(1..).unwrap_or("");
        let order = descriptor.get(..1)?;
        Element::ALL
            .into_iter()
            .find(same)
            .filter(|e| e.size() == 1 || order == "<" || order == "=")
    }
}

/// What a `.npy` says of its array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub element: Element,
    /// The first index runs fastest.
    pub fortran_order: bool,
    pub shape: Vec<usize>,
}

impl Header {
    /// Elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the array; [`Header::read`] has seen that they can be counted.
    pub fn bytes_of_array(&self) -> u64 {
        self.count() as u64 * self.element.size() as u64
    }

    /// Reads versions 1, 2 and 3: the head, and how many bytes it takes.
    pub fn read(from: &mut impl Read) -> Result<(Self, u64)> {
        let mut start = [0u8; 8];
        from.read_exact(&mut start).context("it ends in its head")?;
        anyhow::ensure!(start.starts_with(b"\x93NUMPY"), "it is no .npy array");
        let mut length = [0u8; 4];
        let bytes = if start[6] == 1 { 2 } else { 4 };
        from.read_exact(&mut length[..bytes])
            .context("it ends in its head")?;
        let before = (start.len() + bytes) as u64;
        let length = u32::from_le_bytes(length) as usize;
        anyhow::ensure!(length <= LONGEST, "its head of {length} bytes is damaged");
        let mut text = vec![0; length];
        from.read_exact(&mut text).context("it ends in its head")?;
        let header = Self::parse(&String::from_utf8_lossy(&text))?;
        Ok((header, before + length as u64))
    }

    fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            let (_, rest) = text.split_once(&format!("'{key}':"))?;
            Some(rest.trim_start())
        };
        let damaged = || format!("its head is damaged: {}", text.trim());
        let descriptor = value("descr")
            .and_then(|rest| rest.strip_prefix('\''))
            .and_then(|rest| rest.split('\'').next())
            .with_context(damaged)?;
        let order = value("fortran_order").with_context(damaged)?;
        let shape = value("shape")
            .and_then(|rest| rest.strip_prefix('('))
            .and_then(|rest| rest.split(')').next())
            .with_context(damaged)?;
        let shape: Option<Vec<usize>> = shape
            .split(',')
            .map(str::trim)
            .filter(|size| !size.is_empty())
            .map(|size| size.parse().ok())
            .collect();
        let shape = shape.with_context(damaged)?;
        let elements = shape
            .iter()
            .try_fold(16usize, |n, &size| n.checked_mul(size));
        elements.with_context(damaged)?;
        let element = Element::named(descriptor).ok_or_else(|| {
            hinted(
                format!("its elements are `{descriptor}`"),
                "expected u8, i64, f16, f32 or f64, little-endian",
            )
        })?;
        Ok(Self {
            element,
            fortran_order: order.starts_with("True"),
            shape,
        })
    }

    /// Version 1.0: magic, length, the dictionary padded to a multiple of 64 bytes. C order.
    pub fn bytes(element: Element, shape: &[usize]) -> Vec<u8> {
        let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
        let comma = if shape.len() == 1 { "," } else { "" };
        let mut text = format!(
            "{{'descr': '{}', 'fortran_order': False, 'shape': ({}{comma}), }}",
            element.descriptor(),
            sizes.join(", ")
        );
        let prefix = 10;
        let padded = (prefix + text.len() + 1).next_multiple_of(64);
        text.extend(std::iter::repeat_n(' ', padded - prefix - text.len() - 1));
        text.push('\n');
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend((text.len() as u16).to_le_bytes());
        out.extend(text.bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        for shape in [vec![], vec![7], vec![2, 3, 4]] {
            let bytes = Header::bytes(Element::F64, &shape);
            assert_eq!(bytes.len() % 64, 0);
            let (header, length) = Header::read(&mut &bytes[..])?;
            assert_eq!(length, bytes.len() as u64);
            assert_eq!(
                (header.element, header.fortran_order),
                (Element::F64, false)
            );
            assert_eq!(header.shape, shape);
        }
        Ok(())
    }

    #[test]
    fn other_writers_heads_are_understood() -> Result<()> {
        let text = "{'shape': (10, 2), 'fortran_order': True, 'descr': '<f4'}   \n";
        let header = Header::parse(text)?;
        assert_eq!(header.element, Element::F32);
        assert!(header.fortran_order);
        assert_eq!(header.shape, [10, 2]);
        Ok(())
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, why) in [
            (
                "{'descr': '>f8', 'fortran_order': False, 'shape': (1,), }",
                "`>f8`",
            ),
            (
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
                "`|O`",
            ),
            (
                "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
                "damaged",
            ),
            ("{'descr': '<f8', 'fortran_order': False}", "damaged"),
            (
                "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999, 9999999999), }",
                "damaged",
            ),
        ] {
            let error = Header::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let cut = &Header::bytes(Element::U8, &[3])[..40];
        assert!(Header::read(&mut &cut[..]).is_err());
    }
}
