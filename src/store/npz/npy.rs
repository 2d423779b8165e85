//! A `.npy` array in memory: header and bytes, C order, little-endian.

use super::header::{Element, Header};
use crate::error::Result;

/// The header of an array; its elements follow.
pub fn npy_header(element: Element, shape: &[usize]) -> Vec<u8> {
    Header::bytes(element, shape)
}

/// An array as the bytes of its elements.
pub struct Npy<'a> {
    pub element: Element,
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

impl<'a> Npy<'a> {
    /// Errors: no array of numbers; another order of bytes or elements; more or fewer bytes than
    /// its shape takes.
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        let (header, length) = Header::read(&mut &file[..])?;
        let element = header.numbers()?;
        anyhow::ensure!(
            !header.big_endian && !header.fortran_order,
            "it is in big-endian or FORTRAN order"
        );
        let bytes = &file[length as usize..];
        let expected = header.count() * element.size();
        anyhow::ensure!(
            bytes.len() == expected,
            "it has {} bytes of {expected}",
            bytes.len()
        );
        Ok(Self {
            element,
            shape: header.shape,
            bytes,
        })
    }

    /// Errors: elements that are not unsigned integers of 16 or 32 bits.
    pub fn codes(&self) -> Result<Vec<u32>> {
        match self.element {
            Element::U16 => {
                let (pairs, _) = self.bytes.as_chunks();
                let code = |pair: &[u8; 2]| u32::from(u16::from_le_bytes(*pair));
                Ok(pairs.iter().map(code).collect())
            }
            Element::U32 => {
                let (words, _) = self.bytes.as_chunks();
                Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
            }
            other => anyhow::bail!("its elements are `{}`", other.descriptor()),
        }
    }

    /// Errors: elements that are not f32.
    pub fn floats(&self) -> Result<Vec<f32>> {
        anyhow::ensure!(
            self.element == Element::F32,
            "its elements are `{}`",
            self.element.descriptor()
        );
        let (words, _) = self.bytes.as_chunks();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }
}
