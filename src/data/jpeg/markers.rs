//! The markers of a JPEG file and the segments after them (T.81, annex B).

use super::{Result, damaged, unsupported};

const NOT_WHOLE: &str = "truncated, it has no end marker";

/// The meaning of a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// SOFn: the frame header, by its code.
    Frame(u8),
    HuffmanTables,
    QuantizationTables,
    /// DAC, of arithmetic coding.
    Conditioning,
    RestartInterval,
    /// APPn.
    Application(u8),
    /// A segment that does not affect the pixels.
    Skipped,
    /// A marker without a segment.
    Alone,
    Scan,
    End,
}

/// A position in the file.
pub struct Reader<'a> {
    pub data: &'a [u8],
    pub at: usize,
    pub stray: usize,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Result<Reader<'a>> {
        match data {
            [0xFF, 0xD8, ..] => Ok(Reader {
                data,
                at: 2,
                stray: 0,
            }),
            _ => damaged("no start marker"),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        let Some(&byte) = self.data.get(self.at) else {
            return damaged(NOT_WHOLE);
        };
        self.at += 1;
        Ok(byte)
    }

    /// The code of the next marker. Fill bytes before it are legal; other bytes are counted.
    fn code(&mut self) -> Result<u8> {
        loop {
            while self.byte()? != 0xFF {
                self.stray += 1;
            }
            let code = loop {
                match self.byte()? {
                    0xFF => {}
                    code => break code,
                }
            };
            if code != 0 {
                return Ok(code);
            }
            self.stray += 2;
        }
    }

    pub fn marker(&mut self) -> Result<Marker> {
        Ok(match self.code()? {
            code @ (0xC0..=0xC3 | 0xC9 | 0xCA) => Marker::Frame(code),
            0xC4 => Marker::HuffmanTables,
            code @ (0xC5..=0xC7 | 0xCD..=0xCF) => {
                return unsupported(format!("hierarchical coding (SOF{})", code - 0xC0));
            }
            0xC8 | 0xF0..=0xFD => return unsupported("an extension of JPEG"),
            0xCB => return unsupported("lossless arithmetic coding (SOF11)"),
            0xCC => Marker::Conditioning,
            0x01 | 0xD0..=0xD7 => Marker::Alone,
            0xD8 => return damaged("a second image starts within it"),
            0xD9 => Marker::End,
            0xDA => Marker::Scan,
            0xDB => Marker::QuantizationTables,
            0xDC | 0xFE => Marker::Skipped,
            0xDD => Marker::RestartInterval,
            0xDE | 0xDF => return unsupported("hierarchical coding"),
            code @ 0xE0..=0xEF => Marker::Application(code - 0xE0),
            code => return damaged(format!("unknown marker {code:02X}")),
        })
    }

    /// The content of the segment that starts here.
    pub fn segment(&mut self) -> Result<&'a [u8]> {
        let length = usize::from(self.byte()?) << 8 | usize::from(self.byte()?);
        if length < 2 {
            return damaged(format!("a segment of {length} bytes"));
        }
        let end = self.at + length - 2;
        let Some(segment) = self.data.get(self.at..end) else {
            return damaged(NOT_WHOLE);
        };
        self.at = end;
        Ok(segment)
    }

    /// Skips the restart marker that must follow, the `number`th of its scan.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        let expected = 0xD0 + (number % 8) as u8;
        match self.code()? {
            code if code == expected => Ok(()),
            code => damaged(format!(
                "expected restart marker {expected:02X}, found {code:02X}"
            )),
        }
    }
}
