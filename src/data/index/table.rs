//! The images of a data set as columns of bytes, in memory or in a mapped file: 32 bytes an image
//! and its name, whatever the number of images.
//!
//! A record is `name_end` u64 (where the name ends among all names), `place` u64, `size` u64,
//! `part` u32, `label` u32, little-endian. `place` is [`FILE`] for a file of its own, whose size
//! may be unknown, else the offset in the part's shard.

use std::io::{self, Write};
use std::ops::Range;

use memmap2::Mmap;

use crate::data::found::FoundList;
use crate::data::part::{Place, UNKNOWN};

const RECORD: usize = 32;
const FILE: u64 = u64::MAX;

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
    /// Where each part's list begins, and after them all the end; a mapped one has none.
    starts: Vec<usize>,
    /// Of files, where the columns have none.
    sizes: Sizes,
}

/// The sizes of every `step`-th image; [`UNKNOWN`] where it is in the columns.
#[derive(Debug, Default)]
struct Sizes {
    sizes: Vec<u64>,
    step: usize,
}

impl Sizes {
    fn of(&self, index: usize) -> Option<u64> {
        let number = index.checked_div(self.step)?;
        let size = self.sizes.get(number).copied();
        size.filter(|_| number * self.step == index)
    }
}

#[derive(Debug)]
enum Columns {
    /// Of each part, with the label of each of its classes.
    Memory(Vec<(FoundList, Vec<u32>)>),
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
    /// Of each part the images, and the label of each of their classes.
    pub fn of_lists(lists: Vec<(FoundList, Vec<u32>)>) -> Self {
        let mut starts = vec![0];
        for (list, _) in &lists {
            starts.push(starts.last().copied().unwrap_or(0) + list.len());
        }
        Self {
            columns: Columns::Memory(lists),
            starts,
            sizes: Sizes::default(),
        }
    }

    pub fn len(&self) -> usize {
        match &self.columns {
            Columns::Memory(_) => self.starts.last().copied().unwrap_or(0),
            Columns::Mapped { records, .. } => records.len() / RECORD,
        }
    }

    /// Whether it has what [`Table::write`] cannot write.
    pub fn has_rare(&self) -> bool {
        match &self.columns {
            Columns::Memory(lists) => lists.iter().any(|(list, _)| list.has_rare()),
            Columns::Mapped { .. } => false,
        }
    }

    pub fn item(&self, index: usize) -> Item<'_> {
        let (map, records, names) = match &self.columns {
            Columns::Memory(lists) => {
                let part = self.starts.partition_point(|start| *start <= index) - 1;
                let (list, labels) = &lists[part];
                let found = list.get(index - self.starts[part]);
                return Item {
                    part,
                    label: found.class.map_or(0, |class| labels[class as usize]),
                    name: found.name,
                    place: match (found.place(), self.sizes.of(index)) {
                        (Place::File { size: UNKNOWN }, Some(size)) => Place::File { size },
                        (
                            Place::Unprintable {
                                path,
                                size: UNKNOWN,
                            },
                            Some(size),
                        ) => Place::Unprintable { path, size },
                        (place, _) => place,
                    },
                };
            }
            Columns::Mapped {
                map,
                records,
                names,
            } => (map, &map[records.clone()], names),
        };
        let record = Record::read(&records[index * RECORD..]);
        let begin = match index {
            0 => 0,
            _ => Record::read(&records[(index - 1) * RECORD..]).name_end as usize,
        };
        let name = &map[names.clone()][begin..record.name_end as usize];
        Item {
            part: record.part as usize,
            label: record.label,
            // Checked where the table was opened.
            name: std::str::from_utf8(name).unwrap_or_default(),
            place: match record.place {
                FILE => Place::File { size: record.size },
                offset => Place::Member {
                    offset,
                    size: record.size,
                },
            },
        }
    }

    /// Notes the sizes of every `step`-th image from the first on, of those that were found
    /// without.
    pub fn set_sizes(&mut self, sizes: Vec<u64>, step: usize) {
        self.sizes = Sizes { sizes, step };
    }

    /// Bytes of all names.
    pub fn names_len(&self) -> usize {
        (0..self.len()).map(|i| self.item(i).name.len()).sum()
    }

    /// The records, then the names.
    ///
    /// Errors: what has no record ([`Table::has_rare`]).
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut name_end = 0;
        for index in 0..self.len() {
            let item = self.item(index);
            name_end += item.name.len() as u64;
            let (place, size) = match item.place {
                Place::File { size } => (FILE, size),
                Place::Member { offset, size } => (offset, size),
                _ => return Err(io::ErrorKind::Unsupported.into()),
            };
            let record = Record {
                name_end,
                place,
                size,
                part: item.part as u32,
                label: item.label,
            };
            out.write_all(&record.bytes())?;
        }
        for index in 0..self.len() {
            out.write_all(self.item(index).name.as_bytes())?;
        }
        Ok(())
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
            starts: Vec::new(),
            sizes: Sizes::default(),
        };
        table.check(bounds)?;
        Ok(table)
    }

    fn check(&self, bounds: &Bounds) -> Result<(), &'static str> {
        let Columns::Mapped {
            map,
            records,
            names,
        } = &self.columns
        else {
            return Ok(());
        };
        let names = std::str::from_utf8(&map[names.clone()]).map_err(|_| "a name is not UTF-8")?;
        let any_upwards = names.contains("..");
        let mut begin = 0;
        for record in map[records.clone()].chunks_exact(RECORD) {
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
                (Some(length), offset) => offset
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
