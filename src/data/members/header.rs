//! One block of a tar: its fields, and the PAX records that may precede it.

use super::super::part::Shard;
use super::Damage;

pub(super) const BLOCK: u64 = 512;

/// Maximum length of a header that gives a name; a longer one is an error.
const MAX_TEXT: u64 = 16 << 20;

/// The type of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Including contiguous files.
    File,
    /// GNU's old form.
    Sparse,
    Folder,
    HardLink,
    SymbolicLink,
    Device,
    LongName,
    LongLink,
    Pax,
    GlobalPax,
    /// A member whose data is skipped.
    Unknown,
}

pub(super) struct Header(tar::Header);

impl Header {
    /// None: the block's checksum is not that of a header.
    pub fn new(block: [u8; BLOCK as usize]) -> Option<Self> {
        let said = number(&block[148..156])?;
        let with_blanks = |byte: &(usize, &u8)| !(148..156).contains(&byte.0);
        let bytes = || block.iter().enumerate().filter(with_blanks);
        let unsigned: i64 = 256 + bytes().map(|(_, byte)| i64::from(*byte)).sum::<i64>();
        // Some old programs summed signed bytes.
        let signed: i64 = 256 + bytes().map(|(_, byte)| i64::from(*byte as i8)).sum::<i64>();
        let said = i64::try_from(said).ok()?;
        (said == unsigned || said == signed)
            .then(|| Self(tar::Header::from_byte_slice(&block).clone()))
    }

    pub fn kind(&self) -> Kind {
        match self.0.as_old().linkflag[0] {
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'3' | b'4' | b'6' => Kind::Device,
            b'5' => Kind::Folder,
            b'S' => Kind::Sparse,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            // Solaris's own letter for the same type.
            b'x' | b'X' => Kind::Pax,
            b'g' => Kind::GlobalPax,
            _ => Kind::Unknown,
        }
    }

    /// Size of the data after the header.
    pub fn size(&self) -> Damage<u64> {
        number(&self.0.as_old().size).ok_or_else(|| {
            let name = super::printable(&self.name());
            format!("the size of `{name}` is no number")
        })
    }

    pub fn name(&self) -> Vec<u8> {
        self.0.path_bytes().into_owned()
    }

    pub fn link(&self) -> Vec<u8> {
        self.0.link_name_bytes().unwrap_or_default().into_owned()
    }

    /// The extra fields of GNU's old sparse format.
    pub fn gnu(&self) -> Option<&tar::GnuHeader> {
        self.0.as_gnu()
    }
}

/// A number in octal digits or, with the high bit set, in binary. An empty field is 0.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first & 0x80 == 0 {
        let digits = std::str::from_utf8(until_nul(field)).ok()?.trim();
        return match digits {
            "" => Some(0),
            digits => u64::from_str_radix(digits, 8).ok(),
        };
    }
    // 0xFF begins a negative number.
    let first = u64::from(*first & 0x7F);
    rest.iter().try_fold(first, |number, byte| {
        number.checked_mul(256)?.checked_add(u64::from(*byte))
    })
}

pub(super) fn until_nul(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| *byte == 0);
    &text[..end.unwrap_or(text.len())]
}

/// The position of the next header.
pub(super) fn rounded(end: u64) -> u64 {
    end.saturating_add(BLOCK - 1) / BLOCK * BLOCK
}

/// The bytes of a long name or of PAX records.
pub(super) fn text(tar: &impl Shard, at: u64, size: u64) -> Damage<Vec<u8>> {
    if size > MAX_TEXT {
        return Err(format!("an extended header of {size} bytes"));
    }
    let mut text = vec![0; size as usize];
    tar.read_at(&mut text, at).map_err(|e| e.to_string())?;
    Ok(text)
}

/// The PAX records about a file's position and name.
#[derive(Debug, Default, Clone)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub sparse_name: Option<Vec<u8>>,
    /// Size of a sparse file, including its holes.
    pub real_size: Option<u64>,
    /// Version 1.0: the map precedes the data.
    pub sparse_major: Option<u64>,
    /// Versions 0.0 and 0.1: alternating offsets and lengths.
    pub map: Option<Vec<u64>>,
}

impl Pax {
    /// Parses records `LENGTH KEY=VALUE\n`; a value may contain any bytes.
    pub fn parse(text: &[u8]) -> Damage<Self> {
        let (mut pax, mut rest) = (Self::default(), text);
        while !rest.is_empty() && rest[0] != 0 {
            let (record, behind) = record(rest).ok_or("a PAX header that is none")?;
            rest = behind;
            let Some(equals) = record.iter().position(|byte| *byte == b'=') else {
                return Err("a PAX record without a value".to_string());
            };
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            pax.take(key, value).ok_or_else(|| {
                let key = String::from_utf8_lossy(key);
                format!("the PAX record `{key}` is no number")
            })?;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let number = || std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok();
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.real_size = Some(number()?),
            b"GNU.sparse.major" => self.sparse_major = Some(number()?),
            b"GNU.sparse.map" => {
                let text = std::str::from_utf8(value).ok()?;
                let numbers = text.split(',').map(|number| number.trim().parse().ok());
                self.map = Some(numbers.collect::<Option<_>>()?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.map.get_or_insert_default().push(number()?);
            }
            _ => {}
        }
        Some(())
    }

    pub fn is_sparse(&self) -> bool {
        self.real_size.is_some()
            && (self.map.is_some() || self.sparse_major.is_some_and(|major| major > 0))
    }

    /// Overrides values with those of `over`.
    pub fn merge(&mut self, over: Pax) {
        self.path = over.path.or(self.path.take());
        self.link_path = over.link_path.or(self.link_path.take());
        self.size = over.size.or(self.size);
        self.sparse_name = over.sparse_name.or(self.sparse_name.take());
        self.real_size = over.real_size.or(self.real_size);
        self.sparse_major = over.sparse_major.or(self.sparse_major);
        self.map = over.map.or(self.map.take());
    }
}

/// The first record without its length, and the rest.
fn record(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = text.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&text[..blank]).ok()?.parse().ok()?;
    let record = text.get(blank + 1..length)?;
    Some((record.strip_suffix(b"\n")?, &text[length..]))
}
