//! Which files are images: by name before they are opened, by content afterwards.
//!
//! The name decides whether a file belongs to a data set; the content decides how it is decoded, so
//! that a PNG named `.jpg` can be read.

/// The formats that [`super::decode`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    Jpeg,
    Png,
    WebP,
    Bmp,
    /// PBM, PGM and PPM, as text and as bytes.
    Pnm,
    Tiff,
}

/// The suffixes, for hints.
pub const ENDINGS: &str = ".jpg, .jpeg, .jpe, .jfif, .jif, .jfi, .png, .webp, .bmp, .ppm, .pgm, \
                           .pbm, .pnm, .tif or .tiff";

/// Suffixes of images that are not read. A folder that holds nothing else may be a class.
const UNREAD: [&str; 45] = [
    "apng", "arw", "avif", "avifs", "bpg", "cr2", "cr3", "cur", "dcm", "dds", "dib", "dng", "eps",
    "exr", "fits", "gif", "hdr", "heic", "heics", "heif", "icns", "ico", "insp", "j2c", "j2k",
    "jp2", "jpx", "jxl", "mpo", "nef", "orf", "pam", "pcx", "pfm", "pgx", "psd", "qoi", "raf",
    "rw2", "sgi", "svg", "tga", "wbmp", "xbm", "xcf",
];

/// The longest suffix that may be a kind of file: what follows a dot may be part of a name.
const LONGEST_SUFFIX: usize = 10;

impl ImageKind {
    /// The format that the file name indicates, if it is one that is read.
    pub fn of_name(name: &str) -> Option<ImageKind> {
        let ending = ending(name)?;
        let is = |known: &[&str]| known.iter().any(|known| known.eq_ignore_ascii_case(ending));
        Some(if is(&["jpg", "jpeg", "jpe", "jfif", "jif", "jfi"]) {
            ImageKind::Jpeg
        } else if is(&["png"]) {
            ImageKind::Png
        } else if is(&["webp"]) {
            ImageKind::WebP
        } else if is(&["bmp"]) {
            ImageKind::Bmp
        } else if is(&["pbm", "pgm", "ppm", "pnm"]) {
            ImageKind::Pnm
        } else if is(&["tif", "tiff"]) {
            ImageKind::Tiff
        } else {
            return None;
        })
    }

    /// The format that these first bytes indicate.
    pub fn of_content(bytes: &[u8]) -> Option<ImageKind> {
        Some(match bytes {
            [0xFF, 0xD8, 0xFF, ..] => ImageKind::Jpeg,
            [b'R', b'I', b'F', b'F', _, _, _, _, rest @ ..] if rest.starts_with(b"WEBP") => {
                ImageKind::WebP
            }
            [b'B', b'M', ..] => ImageKind::Bmp,
            [b'P', b'1'..=b'7', next, ..] if next.is_ascii_whitespace() || *next == b'#' => {
                ImageKind::Pnm
            }
            _ if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => ImageKind::Png,
            _ if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]
                .iter()
                .any(|m| bytes.starts_with(*m)) =>
            {
                ImageKind::Tiff
            }
            _ => return None,
        })
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            ImageKind::Jpeg => "JPEG",
            ImageKind::Png => "PNG",
            ImageKind::WebP => "WebP",
            ImageKind::Bmp => "BMP",
            ImageKind::Pnm => "PNM",
            ImageKind::Tiff => "TIFF",
        }
    }
}

/// Whether a file with this name is considered an image.
pub fn is_image_name(name: &str) -> bool {
    ImageKind::of_name(name).is_some()
}

/// Whether a file of this name is an image in a format that is not read.
pub fn is_unread_image_name(name: &str) -> bool {
    let is_it = |ending: &str| {
        UNREAD
            .iter()
            .any(|known| known.eq_ignore_ascii_case(ending))
    };
    ending(name).is_some_and(is_it)
}

/// What kind of file a name says that it is, as in "3 .gif": its suffix in lower case with its dot.
pub fn kind_by_name(name: &str) -> String {
    let is_kind = |ending: &&str| {
        ending.len() <= LONGEST_SUFFIX
            && ending.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && ending.bytes().any(|byte| byte.is_ascii_alphabetic())
    };
    match ending(name).filter(is_kind) {
        Some(ending) => format!(".{}", ending.to_ascii_lowercase()),
        None => "without a suffix".to_string(),
    }
}

/// What the bytes are if they are not an image in a supported format, if recognised.
pub fn other_content(bytes: &[u8]) -> Option<&'static str> {
    let named: [(usize, &[u8], &str); 19] = [
        (0, b"GIF8", "GIF"),
        (4, b"ftypavif", "AVIF"),
        (4, b"ftypheic", "HEIC"),
        (4, b"ftypmif1", "HEIF"),
        (0, b"\xFF\x0A", "JPEG XL"),
        (0, b"\0\0\0\x0CJXL ", "JPEG XL"),
        (0, b"\0\0\0\x0CjP  ", "JPEG 2000"),
        (0, b"\xFF\x4F\xFF\x51", "JPEG 2000"),
        (0, b"8BPS", "PSD"),
        (0, b"\0\0\x01\0", "ICO"),
        (0, b"DDS ", "DDS"),
        (0, b"PF\n", "PFM"),
        (0, b"Pf\n", "PFM"),
        (0, b"\x1f\x8b", "gzip"),
        (0, b"\x28\xB5\x2F\xFD", "zstd"),
        (0, b"\xFD7zXZ\0", "xz"),
        (0, b"BZh", "bzip2"),
        (0, b"PK\x03\x04", "zip"),
        (0, b"version https://git-lfs", "a git-LFS pointer"),
    ];
    let mut text = bytes.trim_ascii_start().iter();
    if text.next() == Some(&b'<') {
        let second = text.next().copied().unwrap_or_default();
        if second == b'!' || second == b'?' || second.is_ascii_alphabetic() {
            return Some("HTML, XML or SVG");
        }
    }
    named
        .into_iter()
        .find(|(at, magic, _)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(.., name)| name)
}

fn ending(name: &str) -> Option<&str> {
    let (stem, ending) = name.rsplit_once('.')?;
    (!stem.is_empty() && !stem.ends_with('/') && !ending.contains('/')).then_some(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whether_a_file_is_read() {
        for name in [
            "a.jpg",
            "a.JPEG",
            "a.JPE",
            "a.jfif",
            "a.jif",
            "a.JFI",
            "a.b.PNG",
            "d.e/a.webp",
            "a.bmp",
            "a.PPM",
            "a.pgm",
            "a.pbm",
            "a.pnm",
            "a.tif",
            "a.TIFF",
        ] {
            assert!(is_image_name(name) && !is_unread_image_name(name), "{name}");
        }
        for name in ["a.gif", "a.HEIC", "x/a.avif", "a.qoi", "a.ARW"] {
            assert!(!is_image_name(name) && is_unread_image_name(name), "{name}");
        }
        for name in [
            "a",
            "jpg",
            ".jpg",
            "d/.jpg",
            "a.txt",
            "a.jpg.txt",
            "a.npz",
            "",
        ] {
            assert!(
                !is_image_name(name) && !is_unread_image_name(name),
                "{name}"
            );
        }
    }

    #[test]
    fn every_name_is_of_some_kind() {
        for (name, kind) in [
            ("a.GIF", ".gif"),
            ("d.e/a.b.7z", ".7z"),
            ("x.mp4", ".mp4"),
            ("IMG_0001", "without a suffix"),
            (".gif", "without a suffix"),
            ("d.gif/a", "without a suffix"),
            ("frame.000123", "without a suffix"),
            ("on 1.5 pages", "without a suffix"),
            ("a.", "without a suffix"),
            ("a.abcdefghijk", "without a suffix"),
        ] {
            assert_eq!(kind_by_name(name), kind, "{name}");
        }
    }

    #[test]
    fn every_ending_of_the_hint_is_read() {
        let endings: Vec<_> = ENDINGS
            .split(['.', ',', ' '])
            .filter(|word| !word.is_empty() && *word != "or")
            .collect();
        assert_eq!(endings.len(), 15);
        for ending in endings {
            assert!(is_image_name(&format!("a.{ending}")), "{ending}");
        }
    }
}
