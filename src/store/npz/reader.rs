//! Reads `.npz`: whole arrays as f64, or u8 in chunks, so that 50,000 images do not have to fit in
//! memory.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use half::f16;
use zip::ZipArchive;

use super::header::{Element, Header};
use crate::error::{Context, Error, Result, hinted};
use crate::store::foreign;

/// An open archive.
pub struct Npz {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
}

/// An array in memory, in C order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

impl Npz {
    /// Errors: there is no such file; it is not a zip, or is truncated; it is something else, which
    /// is named.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|e| {
            let other = foreign::of(path).filter(|kind| !kind.name.contains("zip archive"));
            if let Some(kind) = other {
                return hinted(
                    format!("{} is {}; expected an .npz", path.display(), kind.name),
                    kind.remedy,
                );
            }
            hinted(
                format!(
                    "{}: not an .npz, or not written completely ({e})",
                    path.display()
                ),
                "copy or write it again",
            )
        })?;
        let path = path.to_path_buf();
        Ok(Self { path, zip })
    }

    /// The arrays' names.
    pub fn names(&self) -> Vec<String> {
        let names = self.zip.file_names().flatten();
        names
            .map(|name| name.strip_suffix(".npy").unwrap_or(&name).to_string())
            .collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(&format!("{name}.npy")).is_some()
    }

    /// Whether the file at `path` is an `.npz`, whatever its name.
    pub fn is(path: &Path) -> bool {
        foreign::of(path) == Some(foreign::NPZ)
    }

    /// NumPy's descriptor of the elements and the shape of the array `name`, whether it is read or
    /// not.
    pub fn describe(&mut self, name: &str) -> Result<(String, Vec<usize>)> {
        let header = self.with(name, |_, header| Ok(header.clone()))?;
        Ok((header.descriptor, header.shape))
    }

    /// The array `name`, of any type, as f64.
    pub fn floats(&mut self, name: &str) -> Result<Array> {
        self.with(name, |from, header| {
            let mut bytes = Vec::new();
            let element = header.numbers()?;
            let expected = header.count() as u64 * element.size() as u64;
            from.take(expected)
                .read_to_end(&mut bytes)
                .map_err(damaged)?;
            anyhow::ensure!(bytes.len() as u64 == expected, "it ends early");
            check_rest(from)?;
            if header.big_endian {
                let elements = bytes.chunks_exact_mut(element.size());
                elements.for_each(<[u8]>::reverse);
            }
            let values = values(&bytes, element);
            Ok(Array {
                values: match header.fortran_order {
                    true => to_c_order(&values, &header.shape),
                    false => values,
                },
                shape: header.shape.clone(),
            })
        })
    }

    /// The first `limit` bytes of the u8 array `name`, in chunks of `size`; the last chunk may be
    /// smaller.
    ///
    /// Errors: another type, or FORTRAN order; any error of `take`; a wrong checksum, after the
    /// last byte.
    pub fn bytes(
        &mut self,
        name: &str,
        limit: usize,
        size: usize,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.with(name, |from, header| {
            check_bytes(header)?;
            let mut left = header.count().min(limit);
            let mut piece = vec![0; size.min(left)];
            while left > 0 {
                let piece = &mut piece[..size.min(left)];
                from.read_exact(piece).map_err(damaged)?;
                take(piece)?;
                left -= piece.len();
            }
            check_rest(from)
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the u8 array `name` of this `shape`, as a stream; a wrong checksum is an error
    /// at its end.
    ///
    /// Errors: no such array; another type or shape, or FORTRAN order.
    pub fn stream(&mut self, name: &str, shape: &[usize]) -> Result<Box<dyn Read + '_>> {
        let no_array = || format!("no array `{name}`");
        let entry = self.zip.by_name(&format!("{name}.npy"));
        let mut entry = entry.with_context(no_array)?;
        let (header, _) = Header::read(&mut entry)?;
        check_bytes(&header)?;
        anyhow::ensure!(
            header.shape == shape,
            "its shape is {:?}, expected {shape:?}",
            header.shape
        );
        Ok(Box::new(entry))
    }

    /// Calls `read` with the data after the header of the array `name`.
    ///
    /// Errors: no such array; a shape that needs more bytes than the archive holds for it.
    fn with<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut dyn Read, &Header) -> Result<T>,
    ) -> Result<T> {
        let path = self.path.display();
        if !self.has(name) {
            return Err(hinted(
                format!("{path}: no array `{name}`"),
                format!("it holds {}", self.names().join(", ")),
            ));
        }
        let entry = self.zip.by_name(&format!("{name}.npy"));
        let mut entry = entry.with_context(|| format!("{path}: array `{name}`"))?;
        let size = entry.size();
        let whole = || {
            let (header, length) = Header::read(&mut entry)?;
            // Checked before anything of that size is allocated.
            let (found, expected) = (size.saturating_sub(length), header.bytes_of_array());
            if let Some(expected) = expected
                && found < expected
            {
                return Err(hinted(
                    format!(
                        "its shape {:?} takes {expected} bytes, there are {found}",
                        header.shape
                    ),
                    "copy or write it again",
                ));
            }
            read(&mut entry, &header)
        };
        let context = || format!("{path}: array `{name}`");
        whole().with_context(context)
    }
}

/// Reads to the end, where the archive's checksum is compared.
fn check_rest(from: &mut dyn Read) -> Result<()> {
    io::copy(from, &mut io::sink()).map(drop).map_err(damaged)
}

fn damaged(error: io::Error) -> Error {
    hinted(
        format!("it is damaged, or ends early ({error})"),
        "copy or write it again",
    )
}

fn check_bytes(header: &Header) -> Result<()> {
    if header.element != Some(Element::U8) || header.fortran_order {
        return Err(hinted(
            format!(
                "expected bytes (u8) in C order, found `{}`{}",
                header.descriptor,
                if header.fortran_order {
                    " in FORTRAN's order"
                } else {
                    ""
                }
            ),
            "images are u8 [N,H,W,3] in 0..255, saved from numpy.ascontiguousarray(images, dtype=numpy.uint8)",
        ));
    }
    Ok(())
}

fn values(bytes: &[u8], element: Element) -> Vec<f64> {
    // The chunks have the arrays' length.
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        let (chunks, _) = bytes.as_chunks::<N>();
        chunks.iter().map(|chunk| f(*chunk)).collect()
    }
    match element {
        Element::Bool | Element::U8 => bytes.iter().map(|&b| f64::from(b)).collect(),
        Element::I8 => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
        Element::U16 => each(bytes, |b| f64::from(u16::from_le_bytes(b))),
        Element::I16 => each(bytes, |b| f64::from(i16::from_le_bytes(b))),
        Element::U32 => each(bytes, |b| f64::from(u32::from_le_bytes(b))),
        Element::I32 => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
        Element::U64 => each(bytes, |b| u64::from_le_bytes(b) as f64),
        Element::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        Element::F16 => each(bytes, |b| f64::from(f16::from_le_bytes(b))),
        Element::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Element::F64 => each(bytes, f64::from_le_bytes),
    }
}

/// From FORTRAN order (first index fastest) to C order (last index fastest).
fn to_c_order(values: &[f64], shape: &[usize]) -> Vec<f64> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &size in shape {
        strides.push(stride);
        stride *= size;
    }
    let mut index = vec![0usize; shape.len()];
    let mut out = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        let place: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        out.push(values[place]);
        for (i, &size) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < size {
                break;
            }
            *i = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::NpzWriter;
    use super::*;

    fn written(folder: &Path) -> Result<PathBuf> {
        let path = folder.join("a.npz");
        let mut npz = NpzWriter::new(File::create(&path)?);
        npz.array("mu", Element::F64, &[2, 3])?;
        for x in 0..6 {
            npz.write(&f64::from(x).to_le_bytes())?;
        }
        npz.array("arr_0", Element::U8, &[5])?;
        npz.write(&[1, 2, 3, 4, 5])?;
        npz.finish()?;
        Ok(path)
    }

    #[test]
    fn arrays_are_read_whole_and_in_pieces() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut npz = Npz::open(&written(folder.path())?)?;
        let mu = npz.floats("mu")?;
        assert_eq!(mu.shape, [2, 3]);
        assert_eq!(mu.values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let mut pieces = Vec::new();
        npz.bytes("arr_0", 4, 3, |piece| {
            pieces.push(piece.to_vec());
            Ok(())
        })?;
        assert_eq!(pieces, [vec![1, 2, 3], vec![4]]);
        assert_eq!(npz.describe("arr_0")?, ("|u1".to_string(), vec![5]));
        Ok(())
    }

    /// An `.npz` with one array of any descriptor.
    fn of(path: &Path, name: &str, descr: &str, count: usize, bytes: &[u8]) -> Result<()> {
        let mut head =
            format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ({count},), }}\n");
        head.insert_str(0, "\u{1}\0  ");
        let length = (head.len() - 4) as u16;
        let mut text = head.into_bytes();
        text[2..4].copy_from_slice(&length.to_le_bytes());
        let mut zip = zip::ZipWriter::new(File::create(path)?);
        zip.start_file(
            format!("{name}.npy"),
            zip::write::SimpleFileOptions::default(),
        )?;
        zip.write_all(b"\x93NUMPY")?;
        zip.write_all(&text)?;
        zip.write_all(bytes)?;
        zip.finish()?;
        Ok(())
    }

    #[test]
    fn every_type_of_numbers_is_read_and_every_other_described() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.npz");
        for (descr, bytes, expected) in [
            ("'|b1'", &[1u8, 0][..], vec![1., 0.]),
            ("'|i1'", &[255, 1], vec![-1., 1.]),
            ("'<u2'", &[1, 2], vec![513.]),
            ("'>u2'", &[1, 2], vec![258.]),
            ("'<i2'", &[255, 255], vec![-1.]),
            ("'<i4'", &[254, 255, 255, 255], vec![-2.]),
            ("'>i4'", &[0, 0, 0, 7], vec![7.]),
            ("'<u4'", &[0, 0, 0, 128], vec![2147483648.]),
            ("'<u8'", &[1, 0, 0, 0, 0, 0, 0, 0], vec![1.]),
            ("'>f8'", &1.5f64.to_be_bytes(), vec![1.5]),
            ("'>f4'", &[0x3f, 0x80, 0, 0], vec![1.]),
            ("'<f2'", &[0, 0x3c], vec![1.]),
        ] {
            of(&path, "mu", descr, expected.len(), bytes)?;
            assert_eq!(Npz::open(&path)?.floats("mu")?.values, expected, "{descr}");
        }
        for descr in ["'|O'", "'<U3'", "'<c16'", "[('a', '<f4')]"] {
            of(&path, "x", descr, 2, b"anything")?;
            let mut npz = Npz::open(&path)?;
            assert_eq!(npz.describe("x")?.1, [2]);
            let (text, _) = crate::error::report(&npz.floats("x").unwrap_err());
            assert!(text.contains("which are not numbers"), "{text}");
        }
        Ok(())
    }

    #[test]
    fn other_files_are_named_for_what_they_are() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.npz");
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n";
        for (bytes, words) in [
            (&lfs[..], "a git-LFS pointer"),
            (b"\x93NUMPY\x01\0", "a .npy array"),
            (b"<!doctype html><html>", "an HTML page"),
        ] {
            std::fs::write(&path, bytes)?;
            let (text, _) = crate::error::report(&Npz::open(&path).err().unwrap());
            assert!(text.contains(words) && text.contains("hint: "), "{text}");
        }
        Ok(())
    }

    #[test]
    fn the_order_of_fortran_is_turned() {
        // [[0,1,2],[3,4,5]] in FORTRAN order.
        let values = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0];
        assert_eq!(to_c_order(&values, &[2, 3]), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn what_is_damaged_or_missing_says_so() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = written(folder.path())?;
        let mut npz = Npz::open(&path)?;
        let missing = npz.floats("sigma").unwrap_err();
        let (text, _) = crate::error::report(&missing);
        assert!(
            text.contains("no array `sigma`") && text.contains("holds mu, arr_0"),
            "{text}"
        );
        let floats = npz.bytes("mu", 8, 8, |_| Ok(())).unwrap_err();
        assert!(format!("{floats:#}").contains("found `<f8`"), "{floats:#}");

        let bytes = std::fs::read(&path)?;
        let cut = folder.path().join("cut.npz");
        std::fs::write(&cut, &bytes[..bytes.len() / 2])?;
        let error = Npz::open(&cut).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("not written completely")));
        assert!(Npz::open(&folder.path().join("none.npz")).is_err());
        Ok(())
    }

    #[test]
    fn a_flipped_bit_in_an_array_is_an_error() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = written(folder.path())?;
        let whole = std::fs::read(&path)?;
        let at = |part: &[u8]| whole.windows(part.len()).position(|found| found == part);
        for place in [at(&5f64.to_le_bytes()), at(&[1, 2, 3, 4, 5])] {
            let mut bytes = whole.clone();
            bytes[place.unwrap()] ^= 1;
            std::fs::write(&path, &bytes)?;
            let mut npz = Npz::open(&path)?;
            let found = [
                npz.floats("mu").map(drop),
                // Also for callers who read only the beginning.
                npz.bytes("arr_0", 2, 2, |_| Ok(())),
            ];
            let [error] = &found
                .into_iter()
                .filter_map(Result::err)
                .collect::<Vec<_>>()[..]
            else {
                panic!("one array is damaged");
            };
            let (text, _) = crate::error::report(error);
            assert!(text.contains("damaged") && text.contains("a.npz"), "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_shape_of_more_bytes_than_there_are_asks_for_no_memory() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.npz");
        let mut zip = zip::ZipWriter::new(File::create(&path)?);
        for (name, element) in [("mu.npy", Element::F64), ("arr_0.npy", Element::U8)] {
            zip.start_file(name, zip::write::SimpleFileOptions::default())?;
            // 8 TB and 1 TB.
            zip.write_all(&Header::bytes(element, &[1_000_000, 1_000_000]))?;
        }
        zip.finish()?;
        let mut npz = Npz::open(&path)?;
        let found = [
            npz.floats("mu").map(drop),
            npz.bytes("arr_0", usize::MAX, 1 << 40, |_| Ok(())),
            npz.describe("arr_0").map(drop),
        ];
        for found in found {
            let (text, _) = crate::error::report(&found.unwrap_err());
            assert!(text.contains("bytes, there are 0"), "{text}");
        }
        Ok(())
    }
}
