//! Reads a pickle's bytes from front to back, never beyond their end.

use super::objects::{Outcome, broken};

pub(super) struct Bytes<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Bytes<'a> {
    pub fn take(&mut self, n: usize) -> Outcome<&'a [u8]> {
        let end = self
            .at
            .checked_add(n)
            .filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return broken("ends too early");
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn skip(&mut self, n: usize) -> Outcome<()> {
        self.take(n).map(drop)
    }

    pub fn length1(&mut self) -> Outcome<usize> {
        Ok(u8::from_le_bytes(self.array()?).into())
    }

    pub fn length4(&mut self) -> Outcome<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    pub fn length8(&mut self) -> Outcome<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?))
            .or_else(|_| broken("has a length beyond all memory"))
    }

    pub fn line(&mut self) -> Outcome<String> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().position(|b| *b == b'\n') else {
            return broken("ends too early");
        };
        let line = String::from_utf8_lossy(&rest[..n]).into_owned();
        self.at += n + 1;
        Ok(line)
    }
}
