//! Recognises what a file is by its first bytes, for errors about a file of the wrong kind.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;

use crate::error::{Error, hinted};

/// A kind of file: its name, and what to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The name with its article: `a git-LFS pointer`.
    pub name: &'static str,
    pub remedy: &'static str,
}

const fn kind(name: &'static str, remedy: &'static str) -> Kind {
    Kind { name, remedy }
}

const NOT_THE_FILE: &str =
    "the address returned a page (a login, an error) instead of the file: download the file itself";
const UNPACK: &str = "unpack it, and name the file that is in it";
const OF_OTHER_USE: &str = "name another file";

pub const TORCH: Kind = kind(
    "a file of torch.save",
    "it holds PyTorch's weights: `rdpm inspect` shows which",
);
pub const SAFETENSORS: Kind = kind("a safetensors file", "`rdpm inspect` shows what it holds");
pub const NPZ: Kind = kind(
    "an .npz of NumPy arrays",
    "`rdpm inspect` shows what it holds",
);
pub const NPY: Kind = kind(
    "a .npy array",
    "numpy.savez(FILE, array) writes an .npz, which is read",
);

/// Magic bytes, with their offsets.
const BEGINNINGS: [(usize, &[u8], Kind); 21] = [
    (
        0,
        b"version https://git-lfs",
        kind(
            "a git-LFS pointer, not the file that it stands for",
            "`git lfs pull` in its repository downloads the file; or download it again",
        ),
    ),
    (
        0,
        b"rdpmindx",
        kind(
            "rdpm's index of a data set",
            "name the data itself; the index is made again where it is missing",
        ),
    ),
    (0, b"\x93NUMPY", NPY),
    (257, b"ustar", kind("a tar archive", UNPACK)),
    (
        0,
        b"\x1f\x8b",
        kind("gzip-compressed", "unpack it: gunzip FILE"),
    ),
    (
        0,
        b"BZh",
        kind("bzip2-compressed", "unpack it: bunzip2 FILE"),
    ),
    (
        0,
        b"\xfd7zXZ\0",
        kind("xz-compressed", "unpack it: unxz FILE"),
    ),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        kind("zstd-compressed", "unpack it: unzstd FILE"),
    ),
    (0, b"7z\xbc\xaf\x27\x1c", kind("a 7z archive", UNPACK)),
    (0, b"Rar!\x1a\x07", kind("a RAR archive", UNPACK)),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        kind(
            "an HDF5 file",
            "weights are read from .safetensors, and from what torch.save writes",
        ),
    ),
    (
        0,
        b"GGUF",
        kind(
            "a GGUF file",
            "weights are read from .safetensors, and from what torch.save writes",
        ),
    ),
    (0, b"\x89PNG\r\n\x1a\n", kind("a PNG image", OF_OTHER_USE)),
    (0, b"\xff\xd8\xff", kind("a JPEG image", OF_OTHER_USE)),
    (0, b"GIF8", kind("a GIF image", OF_OTHER_USE)),
    (8, b"WEBP", kind("a WebP image", OF_OTHER_USE)),
    (0, b"%PDF-", kind("a PDF document", OF_OTHER_USE)),
    (0, b"\x7fELF", kind("a program", OF_OTHER_USE)),
    // A pickle's PROTO opcode, then the long integer that is torch.save's old magic number.
    (0, b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20", TORCH),
    (0, b"PK\x03\x04", kind("a zip archive", UNPACK)),
    (0, b"PK\x05\x06", kind("an empty zip archive", OF_OTHER_USE)),
];

/// The kind of the file at `path`, if its first bytes show it.
pub fn of(path: &Path) -> Option<Kind> {
    let mut start = Vec::new();
    let file = File::open(path).ok()?;
    file.take(1024).read_to_end(&mut start).ok()?;
    match start.starts_with(b"PK\x03\x04") {
        true => zip(path).or_else(|| by_bytes(&start)),
        false => by_bytes(&start),
    }
}

/// `NAME is KIND; expected EXPECTED`, if the kind is known.
pub fn refusal(path: &Path, expected: &str) -> Option<Error> {
    let kind = of(path)?;
    Some(hinted(
        format!("{} is {}; expected {expected}", path.display(), kind.name),
        kind.remedy,
    ))
}

fn zip(path: &Path) -> Option<Kind> {
    let zip = ZipArchive::new(BufReader::new(File::open(path).ok()?)).ok()?;
    let has = |ending: &str| {
        let mut names = zip.file_names().flatten();
        names.any(|name| name.ends_with(ending))
    };
    if has("data.pkl") {
        Some(TORCH)
    } else if has(".npy") {
        Some(NPZ)
    } else {
        None
    }
}

fn by_bytes(start: &[u8]) -> Option<Kind> {
    let begins = |(at, bytes, _): &&(usize, &[u8], Kind)| {
        start.get(*at..).is_some_and(|rest| rest.starts_with(bytes))
    };
    if let Some((_, _, kind)) = BEGINNINGS.iter().find(begins) {
        return Some(*kind);
    }
    if let [0x80, 2..=5, ..] = start {
        return Some(kind(
            "a Python pickle that torch.save did not write",
            "load it in Python and save the tensors with torch.save or safetensors",
        ));
    }
    if let Some((length, rest)) = start.split_first_chunk::<8>()
        && u64::from_le_bytes(*length) < 1 << 32
        && rest.starts_with(b"{")
    {
        return Some(SAFETENSORS);
    }
    text(start)
}

fn text(start: &[u8]) -> Option<Kind> {
    // The last character may be cut off.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&start[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{c}');
    if text.is_empty() || text.contains(control) {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    let begins = |words: &[&str]| words.iter().any(|word| lower.starts_with(word));
    Some(
        if begins(&["<!doctype html", "<html", "<head", "<body", "<!--"]) {
            kind("an HTML page", NOT_THE_FILE)
        } else if begins(&["<?xml", "<!doctype", "<error"]) {
            kind("an XML document", NOT_THE_FILE)
        } else if begins(&["{", "["]) {
            kind(
                "JSON text",
                "the weights are in another file: this may be their index, or a server's error message",
            )
        } else {
            kind("text", OF_OTHER_USE)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use std::io::Write;

    fn name(bytes: &[u8]) -> Result<Option<&'static str>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        std::fs::write(&path, bytes)?;
        Ok(of(&path).map(|kind| kind.name))
    }

    #[test]
    fn what_people_hand_over_by_mistake_is_named() -> Result<()> {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        tar[0] = b'a';
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n";
        for (bytes, expected) in [
            (&lfs[..], "a git-LFS pointer"),
            (b"\n <!DOCTYPE HTML>\n<html>", "an HTML page"),
            (b"\xef\xbb\xbf<html lang=en>", "an HTML page"),
            (b"<?xml version='1.0'?><Error>", "an XML document"),
            (b"{\"error\": \"not found\"}", "JSON text"),
            (b"Not Found\n", "text"),
            (b"\x93NUMPY\x01\0", "a .npy array"),
            (b"rdpmindx\x09\0", "rdpm's index"),
            (b"\x1f\x8b\x08\0", "gzip-compressed"),
            (&tar, "a tar archive"),
            (b"\x80\x04\x95", "a Python pickle that torch.save did not"),
            (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
            (b"PK\x03\x04 and no more", "a zip archive"),
            (b"\x40\0\0\0\0\0\0\0{\"a\":", "a safetensors file"),
        ] {
            let found = name(bytes)?.unwrap_or("nothing");
            assert!(found.starts_with(expected), "{found}, expected {expected}");
        }
        assert_eq!(name(b"")?, None);
        assert_eq!(name(&[0x12, 0xff, 0x80, 0])?, None);
        Ok(())
    }

    #[test]
    fn a_zip_is_named_by_what_it_holds() -> Result<()> {
        for (member, expected) in [
            ("archive/data.pkl", TORCH),
            ("arr_0.npy", NPZ),
            ("readme.txt", kind("a zip archive", UNPACK)),
        ] {
            let mut bytes = std::io::Cursor::new(Vec::new());
            let mut zip = zip::ZipWriter::new(&mut bytes);
            zip.start_file(member, zip::write::SimpleFileOptions::default())?;
            zip.write_all(b"x")?;
            zip.finish()?;
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("file");
            std::fs::write(&path, bytes.into_inner())?;
            assert_eq!(of(&path), Some(expected));
        }
        Ok(())
    }
}
