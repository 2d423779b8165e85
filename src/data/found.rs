//! The images of a part in columns, a folder's together: there may be millions, and a `String` and
//! an enum each would take three times their room.

use std::collections::HashMap;
use std::sync::Arc;

use super::part::{ClassName, Label, Place, UNKNOWN};

/// The place of a file of its own; else the offset in the shard, or with [`RARE`] a number.
const FILE: u64 = u64::MAX;
const RARE: u64 = 1 << 63;

const NO_CLASS: u32 = u32::MAX;

/// Where most labels are: no file beside the image.
static NONE: Label = Label::None;

/// Images in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct FoundList {
    chunks: Vec<Chunk>,
    /// Where each chunk begins, and after them all the end.
    starts: Vec<usize>,
    /// What classes are called.
    classes: Vec<ClassName>,
}

/// Images found together. A column that would hold the same for all of them is empty.
#[derive(Debug, Default)]
struct Chunk {
    names: String,
    ends: Vec<u32>,
    /// Empty where none is known.
    sizes: Vec<u64>,
    /// Empty where all are files.
    places: Vec<u64>,
    /// Those that fit into no column.
    rare: Vec<Place>,
    /// Empty where all are [`Label::None`].
    labels: Vec<Label>,
    /// Numbers among [`FoundList::classes`]; empty where none has one.
    classes: Vec<u32>,
}

/// An image of the list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    /// Relative to the path of its part.
    pub name: &'a str,
    pub label: &'a Label,
    /// Its number among [`FoundList::classes`], once that is decided: one image's label depends on
    /// what the others have.
    pub class: Option<u32>,
    chunk: &'a Chunk,
    at: usize,
}

/// What becomes of an image when its class is decided.
pub(super) enum Decision {
    /// Its class is what it was.
    Keep,
    Class(Option<ClassName>),
    LeaveOut,
}

impl Found<'_> {
    pub fn place(&self) -> Place {
        let size = self.chunk.sizes.get(self.at).copied().unwrap_or(UNKNOWN);
        match self.chunk.places.get(self.at).copied().unwrap_or(FILE) {
            FILE => Place::File { size },
            rare if rare & RARE != 0 => self.chunk.rare[(rare & !RARE) as usize].clone(),
            offset => Place::Member { offset, size },
        }
    }
}

impl Chunk {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, at: usize) -> Found<'_> {
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        let class = self.classes.get(at).copied();
        Found {
            name: &self.names[begin as usize..self.ends[at] as usize],
            label: self.labels.get(at).unwrap_or(&NONE),
            class: class.filter(|class| *class != NO_CLASS),
            chunk: self,
            at,
        }
    }

    fn push(&mut self, name: &str, label: Label, place: Place) {
        let before = self.len();
        let (place, size) = match place {
            Place::File { size } => (FILE, size),
            Place::Member { offset, size } if offset & RARE == 0 => (offset, size),
            rare => {
                self.rare.push(rare);
                (RARE | (self.rare.len() - 1) as u64, 0)
            }
        };
        if place != FILE || !self.places.is_empty() {
            self.places.resize(before, FILE);
            self.places.push(place);
        }
        if label != Label::None || !self.labels.is_empty() {
            self.labels.resize(before, Label::None);
            self.labels.push(label);
        }
        if size != UNKNOWN || !self.sizes.is_empty() {
            self.sizes.resize(before, UNKNOWN);
            self.sizes.push(size);
        }
        self.names.push_str(name);
        self.ends.push(self.names.len() as u32);
    }

    fn set_class(&mut self, at: usize, class: u32) {
        if class != NO_CLASS || !self.classes.is_empty() {
            self.classes.resize(self.len(), NO_CLASS);
            self.classes[at] = class;
        }
    }

    /// Gives back what was taken for more images, by a copy: an allocator may let a vector that
    /// shrinks keep up to twice its room.
    fn shrink(&mut self) {
        self.names = self.names.as_str().to_string();
        self.ends = self.ends.to_vec();
        self.sizes = self.sizes.to_vec();
        self.places = self.places.to_vec();
        self.labels.shrink_to_fit();
    }
}

impl FoundList {
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether some image's place is neither a file of an ordinary name nor a range of a shard.
    pub fn has_rare(&self) -> bool {
        self.chunks.iter().any(|chunk| !chunk.rare.is_empty())
    }

    pub fn push(&mut self, name: &str, label: Label, place: Place) {
        let is_full = |chunk: &Chunk| chunk.names.len() + name.len() > u32::MAX as usize;
        if self.chunks.last().is_none_or(is_full) {
            let start = self.len();
            self.chunks.push(Chunk::default());
            self.starts.resize(self.chunks.len(), start);
            self.starts.push(start);
        }
        if let (Some(chunk), Some(end)) = (self.chunks.last_mut(), self.starts.last_mut()) {
            chunk.push(name, label, place);
            *end += 1;
        }
    }

    /// Gives back what was taken for more images.
    pub fn shrink(&mut self) {
        self.chunks.iter_mut().for_each(Chunk::shrink);
    }

    /// Adds the images of a folder, which have no classes yet.
    pub fn extend(&mut self, folder: FoundList) {
        for chunk in folder.chunks {
            let start = self.len();
            let end = start + chunk.len();
            self.chunks.push(chunk);
            self.starts.resize(self.chunks.len(), start);
            self.starts.push(end);
        }
    }

    pub fn get(&self, index: usize) -> Found<'_> {
        let chunk = self.starts.partition_point(|start| *start <= index) - 1;
        self.chunks[chunk].get(index - self.starts[chunk])
    }

    pub fn iter(&self) -> impl Iterator<Item = Found<'_>> {
        let of_chunk = |chunk| (0..Chunk::len(chunk)).map(move |at| chunk.get(at));
        self.chunks.iter().flat_map(of_chunk)
    }

    pub fn class(&self, found: &Found) -> Option<&ClassName> {
        Some(&self.classes[found.class? as usize])
    }

    /// The classes that images have, by their numbers; none where one was another image's before it
    /// was decided otherwise.
    pub fn used(&self) -> Vec<Option<&ClassName>> {
        let mut used = vec![None; self.classes.len()];
        for found in self.iter() {
            if let Some(class) = found.class {
                used[class as usize] = Some(&self.classes[class as usize]);
            }
        }
        used
    }

    /// Decides the class of every image.
    pub fn decide(&mut self, mut decision: impl FnMut(&Found) -> Decision) {
        let mut numbers: HashMap<ClassName, u32> = self.classes.iter().cloned().zip(0..).collect();
        // Most images are of the class of the one before them.
        let mut last: Option<(ClassName, u32)> = None;
        let mut left_out = Vec::new();
        let mut index = 0;
        for chunk in &mut self.chunks {
            for at in 0..chunk.len() {
                match decision(&chunk.get(at)) {
                    Decision::Keep => {}
                    Decision::Class(None) => chunk.set_class(at, NO_CLASS),
                    Decision::Class(Some(class)) => {
                        let number = match &last {
                            Some((name, number)) if *name == class => *number,
                            _ => {
                                let next = self.classes.len() as u32;
                                let number = *numbers.entry(class.clone()).or_insert(next);
                                if number == next {
                                    self.classes.push(class.clone());
                                }
                                last = Some((class, number));
                                number
                            }
                        };
                        chunk.set_class(at, number);
                    }
                    Decision::LeaveOut => left_out.push(index),
                }
                index += 1;
            }
        }
        if !left_out.is_empty() {
            let mut left_out = left_out.into_iter().peekable();
            *self = self.rebuilt((0..index).filter(|i| left_out.next_if_eq(i).is_none()));
        }
    }

    /// The images of these numbers, in this order.
    fn rebuilt(&self, order: impl Iterator<Item = usize>) -> Self {
        let mut list = Self::default();
        for index in order {
            let found = self.get(index);
            list.push(found.name, found.label.clone(), found.place());
            if let (Some(class), Some(chunk)) = (found.class, list.chunks.last_mut()) {
                chunk.set_class(chunk.len() - 1, class);
            }
        }
        list.classes.clone_from(&self.classes);
        list
    }

    /// Puts the images in the order of their names.
    pub fn sort(&mut self) {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by(|&a, &b| self.get(a).name.cmp(self.get(b).name));
        *self = self.rebuilt(order.into_iter());
    }
}

/// A class by the name of a folder.
pub(super) fn named(name: &str) -> ClassName {
    ClassName::Name(Arc::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &FoundList) -> Vec<&str> {
        list.iter().map(|found| found.name).collect()
    }

    #[test]
    fn what_is_pushed_is_got() {
        let places = [
            Place::File { size: 3 },
            Place::Member {
                offset: 512,
                size: 7,
            },
            Place::Refused("why".into()),
            Place::File { size: 9 },
        ];
        let labels = [
            Label::None,
            Label::Silent,
            Label::None,
            Label::Bad("x".to_string()),
        ];
        let (mut list, mut folder) = (FoundList::default(), FoundList::default());
        for (i, (place, label)) in places.iter().zip(&labels).enumerate() {
            let target = if i < 2 { &mut list } else { &mut folder };
            target.push(&format!("name-{i}"), label.clone(), place.clone());
        }
        list.extend(folder);
        assert_eq!((list.len(), list.has_rare()), (4, true));
        for (i, found) in list.iter().enumerate() {
            for found in [found, list.get(i)] {
                assert_eq!(
                    (found.name, found.label),
                    (&*format!("name-{i}"), &labels[i])
                );
                assert_eq!(format!("{:?}", found.place()), format!("{:?}", places[i]));
                assert_eq!(found.class, None);
            }
        }
    }

    #[test]
    fn classes_stay_with_their_images() {
        let mut list = FoundList::default();
        for name in ["d/1", "a/2", "c/3", "a/4", "b/5"] {
            list.push(name, Label::None, Place::File { size: 1 });
        }
        list.decide(|found| match &found.name[..1] {
            "c" => Decision::Class(None),
            class => Decision::Class(Some(named(class))),
        });
        list.decide(|found| match found.name {
            "a/2" => Decision::LeaveOut,
            _ => Decision::Keep,
        });
        assert_eq!(names(&list), ["d/1", "c/3", "a/4", "b/5"]);
        list.sort();
        assert_eq!(names(&list), ["a/4", "b/5", "c/3", "d/1"]);
        for found in list.iter() {
            let expected = Some(named(&found.name[..1])).filter(|_| !found.name.starts_with('c'));
            assert_eq!(list.class(&found), expected.as_ref());
        }
    }
}
