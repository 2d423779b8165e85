//! Writes NumPy's `.npz` as a stream: an uncompressed zip of `.npy` arrays, so that 50,000 images
//! do not have to fit in memory.
//!
//! ADM's evaluation reads `arr_0`, u8 [N,H,W,3], and labels in `arr_1`, i64 [N].

use std::io::{self, Seek, Write};

use zip::ZipWriter;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;

use super::header::{Element, Header};
use crate::error::Result;

/// Writes arrays one after the other; each must get exactly the bytes of its shape.
pub struct NpzWriter<W: Write + Seek> {
    zip: ZipWriter<UntilFailure<W>>,
    name: String,
    /// Bytes that the open array still needs.
    lacking: u64,
}

impl<W: Write + Seek> NpzWriter<W> {
    pub fn new(to: W) -> Self {
        Self {
            zip: ZipWriter::new(UntilFailure {
                to,
                at: 0,
                failed: false,
            }),
            name: String::new(),
            lacking: 0,
        }
    }

    /// Opens the array `name`, in C order; the following writes fill it.
    pub fn array(&mut self, name: &str, element: Element, shape: &[usize]) -> Result<()> {
        self.close()?;
        let bytes = shape.iter().map(|&n| n as u64).product::<u64>() * element.size() as u64;
        // Zip64 from the start, because this cannot be changed later.
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .large_file(bytes > u64::from(u32::MAX) / 2);
        self.zip
            .start_file(format!("{name}.npy"), options)
            .map_err(unwrapped)?;
        self.zip.write_all(&Header::bytes(element, shape))?;
        (self.name, self.lacking) = (name.to_string(), bytes);
        Ok(())
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        anyhow::ensure!(
            bytes.len() as u64 <= self.lacking,
            "array `{}` is full: {} bytes too many",
            self.name,
            bytes.len() as u64 - self.lacking
        );
        self.zip.write_all(bytes)?;
        self.lacking -= bytes.len() as u64;
        Ok(())
    }

    /// Sets the archive's comment (`unzip -z`); readers of arrays ignore it.
    pub fn comment(&mut self, text: &str) -> Result<()> {
        Ok(self.zip.set_comment(text).map_err(unwrapped)?)
    }

    /// Ends the archive and returns the writer.
    pub fn finish(self) -> Result<W> {
        self.close()?;
        Ok(self.zip.finish().map_err(unwrapped)?.to)
    }

    fn close(&self) -> Result<()> {
        anyhow::ensure!(
            self.lacking == 0,
            "array `{}` is {} bytes short",
            self.name,
            self.lacking
        );
        Ok(())
    }
}

/// The system's own error. The zip's would stand before it in the message, and hide that it is an
/// error of the file.
fn unwrapped(error: ZipError) -> io::Error {
    match error {
        ZipError::Io(error) => error,
        other => io::Error::from(other),
    }
}

/// Accepts all data once a write has failed: the zip's drop would end the archive, and print that
/// this fails too.
struct UntilFailure<W> {
    to: W,
    at: u64,
    failed: bool,
}

impl<W: Write> Write for UntilFailure<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match self.failed {
            true => bytes.len(),
            false => self.to.write(bytes).inspect_err(|_| self.failed = true)?,
        };
        self.at += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.failed {
            true => Ok(()),
            false => self.to.flush().inspect_err(|_| self.failed = true),
        }
    }
}

impl<W: Seek> Seek for UntilFailure<W> {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.at = match (self.failed, position) {
            (true, io::SeekFrom::Start(at)) => at,
            (true, io::SeekFrom::Current(by) | io::SeekFrom::End(by)) => {
                self.at.saturating_add_signed(by)
            }
            (false, _) => self.to.seek(position).inspect_err(|_| self.failed = true)?,
        };
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::*;

    #[test]
    fn an_array_is_numpys_header_then_its_bytes() -> Result<()> {
        let mut npz = NpzWriter::new(Cursor::new(Vec::new()));
        npz.array("arr_0", Element::U8, &[2, 1, 1, 3])?;
        npz.write(&[1, 2, 3])?;
        npz.write(&[4, 5, 6])?;
        npz.array("arr_1", Element::I64, &[2])?;
        npz.write(&7i64.to_le_bytes())?;
        npz.write(&(-1i64).to_le_bytes())?;
        let mut zip = zip::ZipArchive::new(npz.finish()?)?;
        let mut bytes = Vec::new();
        zip.by_name("arr_1.npy")?.read_to_end(&mut bytes)?;
        // Written by numpy.save for np.array([7, -1]).
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend(b"{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }");
        expected.extend([b' '; 60]);
        expected.push(b'\n');
        expected.extend(7i64.to_le_bytes());
        expected.extend((-1i64).to_le_bytes());
        assert_eq!(bytes, expected);
        let mut bytes = Vec::new();
        zip.by_name("arr_0.npy")?.read_to_end(&mut bytes)?;
        assert_eq!(&bytes[128..], &[1, 2, 3, 4, 5, 6]);
        assert!(String::from_utf8_lossy(&bytes).contains("'shape': (2, 1, 1, 3), }"));
        Ok(())
    }

    #[test]
    fn an_array_takes_neither_more_nor_less_than_its_shape() -> Result<()> {
        let mut npz = NpzWriter::new(Cursor::new(Vec::new()));
        npz.array("arr_0", Element::U8, &[2])?;
        assert!(npz.write(&[1, 2, 3]).is_err());
        npz.write(&[1])?;
        let error = npz.array("arr_1", Element::I64, &[1]).unwrap_err();
        assert!(error.to_string().contains("1 bytes short"), "{error}");
        assert!(npz.finish().is_err());
        Ok(())
    }

    /// Accepts this many bytes, then is full.
    struct Small(usize);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Small {
        fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn a_full_disk_is_told_apart_wherever_it_comes() {
        for room in [0, 40, 200, 400] {
            let write = || -> Result<()> {
                let mut npz = NpzWriter::new(Small(room));
                npz.array("arr_0", Element::U8, &[200])?;
                npz.write(&[7; 200])?;
                npz.finish().map(drop)
            };
            let error = write().unwrap_err();
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            assert_eq!(kind, Some(io::ErrorKind::StorageFull), "{room}: {error:?}");
            // `atomic::write_with` treats a bare `io::Error` as its own.
            assert_eq!(error.chain().count(), 1, "{room}: {error:?}");
        }
    }
}
