//! The header of a `.npy` array: magic, version, and a Python dictionary of type, order and shape.

use std::io::Read;

use crate::error::{Context, Result, hinted};

/// A longer header is damaged.
const LONGEST: usize = 1 << 16;

/// Element types that are read as numbers, by NumPy's descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

impl Element {
    const ALL: [Element; 12] = [
        Element::Bool,
        Element::U8,
        Element::I8,
        Element::U16,
        Element::I16,
        Element::U32,
        Element::I32,
        Element::U64,
        Element::I64,
        Element::F16,
        Element::F32,
        Element::F64,
    ];

    /// Little-endian, as NumPy writes it on most machines.
    pub fn descriptor(self) -> &'static str {
        match self {
            Element::Bool => "|b1",
            Element::U8 => "|u1",
            Element::I8 => "|i1",
            Element::U16 => "<u2",
            Element::I16 => "<i2",
            Element::U32 => "<u4",
            Element::I32 => "<i4",
            Element::U64 => "<u8",
            Element::I64 => "<i8",
            Element::F16 => "<f2",
            Element::F32 => "<f4",
            Element::F64 => "<f8",
        }
    }

    /// Bytes.
    pub fn size(self) -> usize {
        match self {
            Element::Bool | Element::U8 | Element::I8 => 1,
            Element::U16 | Element::I16 | Element::F16 => 2,
            Element::U32 | Element::I32 | Element::F32 => 4,
            Element::U64 | Element::I64 | Element::F64 => 8,
        }
    }

    /// The element type, and whether its bytes are swapped (big-endian).
    fn named(descriptor: &str) -> Option<(Self, bool)> {
        let (order, kind) = descriptor.split_at_checked(1)?;
        let element = Element::ALL
            .into_iter()
            .find(|e| e.descriptor()[1..] == *kind)?;
        match order {
            ">" => Some((element, element.size() > 1)),
            "<" | "|" | "=" => Some((element, false)),
            _ => None,
        }
    }
}

/// The header of a `.npy` array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// NumPy's descriptor of the element type, whether it is read or not.
    pub descriptor: String,
    /// Types that are read as numbers; arrays of text, of objects and of records are not.
    pub element: Option<Element>,
    pub big_endian: bool,
    /// FORTRAN order: the first index varies fastest.
    pub fortran_order: bool,
    pub shape: Vec<usize>,
}

impl Header {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size of the array in bytes, if the size of an element is known. [`Header::read`] has checked
    /// that it does not overflow.
    pub fn bytes_of_array(&self) -> Option<u64> {
        Some(self.count() as u64 * self.element?.size() as u64)
    }

    /// Errors: elements that are not numbers; names their type.
    pub fn numbers(&self) -> Result<Element> {
        self.element.ok_or_else(|| {
            hinted(
                format!(
                    "its elements are `{}`, which are not numbers",
                    self.descriptor
                ),
                "expected booleans, integers or floats: array.astype(numpy.float64) converts them",
            )
        })
    }

    /// Reads versions 1, 2 and 3. Returns the header and its length in bytes.
    pub fn read(from: &mut impl Read) -> Result<(Self, u64)> {
        let mut start = [0u8; 8];
        from.read_exact(&mut start)
            .context("it ends within its header")?;
        anyhow::ensure!(start.starts_with(b"\x93NUMPY"), "it is not a .npy array");
        let mut length = [0u8; 4];
        let bytes = if start[6] == 1 { 2 } else { 4 };
        from.read_exact(&mut length[..bytes])
            .context("it ends within its header")?;
        let before = (start.len() + bytes) as u64;
        let length = u32::from_le_bytes(length) as usize;
        anyhow::ensure!(length <= LONGEST, "its header of {length} bytes is damaged");
        let mut text = vec![0; length];
        from.read_exact(&mut text)
            .context("it ends within its header")?;
        let header = Self::parse(&String::from_utf8_lossy(&text))?;
        Ok((header, before + length as u64))
    }

    fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            let (_, rest) = text.split_once(&format!("'{key}':"))?;
            Some(rest.trim_start())
        };
        let damaged = || format!("its header is damaged: {}", text.trim());
        let descriptor = value("descr").and_then(descriptor).with_context(damaged)?;
        let order = value("fortran_order").with_context(damaged)?;
        let shape = value("shape")
            .and_then(|rest| rest.strip_prefix('('))
            .and_then(|rest| rest.split(')').next())
            .with_context(damaged)?;
        let shape: Option<Vec<usize>> = shape
            .split(',')
            .map(str::trim)
            .filter(|size| !size.is_empty())
            // Python 2 wrote long integers as 5L.
            .map(|size| size.trim_end_matches('L').parse().ok())
            .collect();
        let shape = shape.with_context(damaged)?;
        let elements = shape
            .iter()
            .try_fold(16usize, |n, &size| n.checked_mul(size));
        elements.with_context(damaged)?;
        let (element, big_endian) = match Element::named(&descriptor) {
            Some((element, big_endian)) => (Some(element), big_endian),
            None => (None, false),
        };
        Ok(Self {
            descriptor,
            element,
            big_endian,
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

/// The value of `descr` at the start of `rest`: a quoted string, or a record's list of fields,
/// unparsed.
fn descriptor(rest: &str) -> Option<String> {
    if let Some(word) = rest.strip_prefix('\'') {
        return Some(word.split('\'').next()?.to_string());
    }
    let mut depth = 0;
    for (at, c) in rest.char_indices() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (at > 0).then(|| rest[..=at].to_string());
        }
    }
    None
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
                (Some(Element::F64), false)
            );
            assert_eq!(header.shape, shape);
        }
        Ok(())
    }

    #[test]
    fn other_writers_heads_are_understood() -> Result<()> {
        let text = "{'shape': (10, 2), 'fortran_order': True, 'descr': '<f4'}   \n";
        let header = Header::parse(text)?;
        assert_eq!(header.element, Some(Element::F32));
        assert!(header.fortran_order);
        assert_eq!(header.shape, [10, 2]);
        let text = "{'descr': '>i4', 'fortran_order': False, 'shape': (3L, 4L), }";
        let header = Header::parse(text)?;
        assert_eq!(
            (header.element, header.big_endian),
            (Some(Element::I32), true)
        );
        assert_eq!(header.shape, [3, 4]);
        for (descr, words) in [
            ("'|O'", "|O"),
            ("'<U5'", "<U5"),
            ("'<c8'", "<c8"),
            (
                "[('a', '<f4'), ('b', '<i8', (2,))]",
                "[('a', '<f4'), ('b', '<i8', (2,))]",
            ),
        ] {
            let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (2,), }}");
            let header = Header::parse(&text)?;
            assert_eq!((header.descriptor.as_str(), header.element), (words, None));
            let error = header.numbers().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, why) in [
            (
                "{'descr': [('a', '<f4', 'fortran_order': False, 'shape': (1,), }",
                "damaged",
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
