//! The images of a data set as columns of bytes, in memory or in a mapped file: 32 bytes an image
//! and its name, whatever the number of images.
//!
//! A record is `name_end` u64 (where the name ends among all names), `place` u64, `size` u64, `part`
//! u32, `label` u32, little-endian. `place` is [`FILE`] for a file of its own, with [`RARE`] a number
//! of [`Table::rare`], else the offset in the part's shard.

use std::io::{self, Write};
use std::ops::Range;

use memmap2::Mmap;

use crate::data::part::Place;

const RECORD: usize = 32;
const FILE: u64 = u64::MAX;
const RARE: u64 = 1 << 63;

/// An image of the set.
#[derive(Debug)]
pub(in crate::data) struct Item<'a> {
    pub part: usize,
    pub label: u32,
    pub name: &'a str,
    pub place: Place,
}

#[derive(Debug)]
pub(in crate::data) struct Table {
    columns: Columns,
    /// Places that do not fit into a record: none of them in a file.
    rare: Vec<Place>,
}

#[derive(Debug)]
enum Columns {
    Memory {
        records: Vec<u8>,
        names: Vec<u8>,
    },
    Mapped {
        map: Mmap,
        records: Range<usize>,
        names: Range<usize>,
    },
}

/// What a table read from a file must agree with.
pub(super) struct Bounds<'a> {
    pub images: usize,
    /// Of the names together.
    pub names: usize,
    /// The size of each part's shard; none where the part is a folder.
    pub shards: &'a [Option<u64>],
    /// One more than the largest label.
    pub labels: u32,
}

impl Table {
    pub fn len(&self) -> usize {
        self.records().len() / RECORD
    }

    fn records(&self) -> &[u8] {
        match &self.columns {
            Columns::Memory { records, .. } => records,
            Columns::Mapped { map, records, .. } => &map[records.clone()],
        }
    }

    fn names(&self) -> &[u8] {
        match &self.columns {
            Columns::Memory { names, .. } => names,
            Columns::Mapped { map, names, .. } => &map[names.clone()],
        }
    }

    /// Whether it has what [`Table::write`] cannot write.
    pub fn has_rare(&self) -> bool {
        !self.rare.is_empty()
    }

    pub fn item(&self, index: usize) -> Item<'_> {
        let records = self.records();
        let record = Record::read(&records[index * RECORD..]);
        let begin = match index {
            0 => 0,
            _ => Record::read(&records[(index - 1) * RECORD..]).name_end as usize,
        };
        let name = &self.names()[begin..record.name_end as usize];
        Item {
            part: record.part as usize,
            label: record.label,
            // Checked where the table was made.
            name: std::str::from_utf8(name).unwrap_or_default(),
            place: match record.place {
                FILE => Place::File { size: record.size },
                rare if rare & RARE != 0 => self.rare[(rare & !RARE) as usize].clone(),
                offset => Place::Member {
                    offset,
                    size: record.size,
                },
            },
        }
    }

    /// Bytes of all names.
    pub fn names_len(&self) -> usize {
        self.names().len()
    }

    /// The records, then the names.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(self.records())?;
        out.write_all(self.names())
    }

    /// The table that lies in `map` from byte `begin` on, for nothing but [`Bounds`] to be trusted.
    ///
    /// The error says what is wrong.
    pub(super) fn of_map(map: Mmap, begin: usize, bounds: &Bounds) -> Result<Self, &'static str> {
        let beyond = "it ends before what its head says";
        let records = bounds.images.checked_mul(RECORD).ok_or(beyond)?;
        let middle = begin.checked_add(records).ok_or(beyond)?;
        let end = middle.checked_add(bounds.names).ok_or(beyond)?;
        if end > map.len() {
            return Err(beyond);
        }
        let table = Self {
            columns: Columns::Mapped {
                map,
                records: begin..middle,
                names: middle..end,
            },
            rare: Vec::new(),
        };
        table.check(bounds)?;
        Ok(table)
    }

    fn check(&self, bounds: &Bounds) -> Result<(), &'static str> {
        let names = std::str::from_utf8(self.names()).map_err(|_| "a name is not UTF-8")?;
        let any_upwards = names.contains("..");
        let mut begin = 0;
        for record in self.records().chunks_exact(RECORD) {
            let record = Record::read(record);
            let end = usize::try_from(record.name_end).unwrap_or(usize::MAX);
            let name = names
                .get(begin..end)
                .ok_or("a name lies beyond the names")?;
            let upwards = any_upwards && name.split('/').any(|part| part == "..");
            if name.starts_with('/') || upwards {
                return Err("a name leads out of its folder");
            }
            begin = end;
            let shard = bounds.shards.get(record.part as usize);
            let fits = match (shard.ok_or("an image is of no part")?, record.place) {
                (None, FILE) => true,
                (Some(length), offset) if offset & RARE == 0 => offset
                    .checked_add(record.size)
                    .is_some_and(|end| end <= *length),
                _ => false,
            };
            if !fits {
                return Err("an image lies outside its shard");
            }
            if record.label >= bounds.labels {
                return Err("a label is of no class");
            }
        }
        match begin == names.len() {
            true => Ok(()),
            false => Err("there are names of no image"),
        }
    }
}

struct Record {
    name_end: u64,
    place: u64,
    size: u64,
    part: u32,
    label: u32,
}

impl Record {
    /// Of at least [`RECORD`] bytes.
    fn read(bytes: &[u8]) -> Self {
        let (words, _) = bytes[..RECORD].as_chunks::<8>();
        let word = |at: usize| u64::from_le_bytes(words[at]);
        Self {
            name_end: word(0),
            place: word(1),
            size: word(2),
            part: word(3) as u32,
            label: (word(3) >> 32) as u32,
        }
    }

    fn bytes(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        let last = u64::from(self.part) | u64::from(self.label) << 32;
        let words = [self.name_end, self.place, self.size, last];
        for (out, word) in bytes.chunks_exact_mut(8).zip(words) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Makes a table in memory, image by image.
pub(in crate::data) struct Builder {
    records: Vec<u8>,
    names: Vec<u8>,
    rare: Vec<Place>,
}

impl Builder {
    pub fn new(images: usize, names: usize) -> Self {
        Self {
            records: Vec::with_capacity(images * RECORD),
            names: Vec::with_capacity(names),
            rare: Vec::new(),
        }
    }

    pub fn push(&mut self, part: usize, label: u32, name: &str, place: Place) {
        self.names.extend_from_slice(name.as_bytes());
        let (place, size) = match place {
            Place::File { size } => (FILE, size),
            Place::Member { offset, size } if offset & RARE == 0 => (offset, size),
            rare => {
                self.rare.push(rare);
                (RARE | (self.rare.len() - 1) as u64, 0)
            }
        };
        let record = Record {
            name_end: self.names.len() as u64,
            place,
            size,
            part: part as u32,
            label,
        };
        self.records.extend_from_slice(&record.bytes());
    }

    pub fn table(self) -> Table {
        Table {
            columns: Columns::Memory {
                records: self.records,
                names: self.names,
            },
            rare: self.rare,
        }
    }
}
