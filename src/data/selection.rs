//! The one rule for what is data, for folders, tar shards and globs: which files are images of the
//! set, which are labels of theirs, and which are passed over and counted.
//!
//! - A part of a path that begins with a dot, or that a system made for itself (`__MACOSX`), hides
//!   all below it. Images there are counted.
//! - An image is told by its ending ([`super::image_kind`]).
//! - Files of one folder that share their name up to the first dot are one sample, as in
//!   WebDataset: a key with fields, whose case does not matter. `key.cls`, `key.cls.txt`,
//!   `key.json` and `key.txt` are asked for a class.
//! - All else is counted by its kind: pictures that are not read, and what is no field of an image.
//!   Texts that may be fields (`readme.txt`) are not.
//! - Beside `key.jpg`, `key.seg.png` is a second image of the key, a mask, and no part of the set
//!   (`key.2.jpg` is: no field is a number). So is `key.png` where the key has fields that are no
//!   images; where it has none, both are images, as in a folder of any.

use std::collections::{BTreeMap, BTreeSet};

use super::found::FoundList;
use super::image_kind::{ImageKind, is_image_name, is_unread_image_name, kind_by_name};
use super::labels;
use super::part::{Bare, Held, Label, Listed, Part};
use super::shards::shard_ending;

/// Folders and files that systems make beside the user's.
const SYSTEM: [&str; 7] = [
    "__MACOSX",
    "@eaDir",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "Thumbs.db",
    "desktop.ini",
];

/// Fields that are the image where a key has several and none is plain.
const IMAGE_FIELDS: [&str; 5] = ["img", "image", "rgb", "photo", "input"];

/// A label is a number or a name.
const MAX_LABEL: u64 = 64 << 10;

/// What JSON beside an image may take.
const MAX_JSON: u64 = 64 << 20;

/// Whether a part of a path hides all below it.
pub(super) fn hides(part: &str) -> bool {
    (part.starts_with('.') && part != "..") || SYSTEM.contains(&part)
}

/// The folder around the first part of a path that hides what is below it.
fn around_hidden(name: &str) -> Option<&str> {
    let mut start = 0;
    for part in name.split('/') {
        if hides(part) {
            return Some(name[..start].trim_end_matches('/'));
        }
        start += part.len() + 1;
    }
    None
}

/// Whether the file of this name, which is hidden, is counted: an image, but not what a Mac keeps
/// of one (`._x.jpg`).
pub(super) fn is_hidden_image(name: &str) -> bool {
    is_image_name(name) && !name[file_start(name)..].starts_with("._")
}

/// A name as text, whatever its bytes are: `\xE9` stands for one that is not UTF-8.
pub(super) fn printable(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}

/// The bytes of the name that [`printable`] makes this text of.
pub(super) fn unprinted(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some(next) = rest.chars().next() {
        let escaped = rest.strip_prefix("\\x").and_then(|digits| digits.get(..2));
        let byte = escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let length = match byte.filter(|byte| !byte.is_ascii()) {
            Some(byte) => {
                bytes.push(byte);
                4
            }
            None => {
                let length = next.len_utf8();
                bytes.extend_from_slice(&rest.as_bytes()[..length]);
                length
            }
        };
        rest = &rest[length..];
    }
    bytes
}

/// The name without its last ending.
pub(super) fn stem(name: &str) -> &str {
    let file = file_start(name);
    &name[..name[file..].rfind('.').map_or(name.len(), |dot| file + dot)]
}

/// WebDataset's key: up to the first dot of the file's name.
pub(super) fn key(name: &str) -> &str {
    let file = file_start(name);
    &name[..name[file..].find('.').map_or(name.len(), |dot| file + dot)]
}

fn file_start(name: &str) -> usize {
    name.rfind('/').map_or(0, |slash| slash + 1)
}

/// What a file is by its name.
enum Role {
    Image,
    /// Asked for the class of the images of this stem.
    Label(Field),
    /// Not read, and no field of an image either: a picture of another kind, a shard.
    Unread,
    Other,
}

/// The fields that may hold a class, the surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Cls,
    ClsText,
    Json,
    Text,
}

/// The field, and what is left of the name.
fn label_field(name: &str) -> Option<(&str, Field)> {
    let fields = [
        (".cls.txt", Field::ClsText),
        (".cls", Field::Cls),
        (".json", Field::Json),
        (".txt", Field::Text),
    ];
    fields.into_iter().find_map(|(ending, field)| {
        let at = name.len().checked_sub(ending.len())?;
        let is_it = name.get(at..)?.eq_ignore_ascii_case(ending) && at > file_start(name);
        is_it.then(|| (&name[..at], field))
    })
}

fn role(name: &str) -> Role {
    if is_image_name(name) {
        Role::Image
    } else if let Some((_, field)) = label_field(name) {
        Role::Label(field)
    } else if is_unread_image_name(name) || shard_ending(name).is_some() {
        Role::Unread
    } else {
        Role::Other
    }
}

/// Whether a file of this name can be a field of an image.
pub(super) fn may_be_field(name: &str) -> bool {
    matches!(role(name), Role::Other | Role::Label(_))
}

/// The kind that a file of this name counts as where it is no field of an image; none if it is
/// read, or is one of the texts that may lie anywhere.
pub(super) fn unread_kind(name: &str) -> Option<String> {
    match role(name) {
        Role::Image | Role::Label(_) => None,
        Role::Unread | Role::Other => {
            let shard = shard_ending(name).map(str::to_string);
            Some(shard.unwrap_or_else(|| kind_by_name(name)))
        }
    }
}

/// Reads at most so many bytes of a file, and one more if there are more.
pub(super) type Read<'a> = dyn FnMut(&Listed, u64) -> std::io::Result<Vec<u8>> + 'a;

/// Adds to `part` what of its `files` and `folders` is data. `broken` are images that links name
/// and nobody finds.
pub(super) fn select(
    files: Vec<Listed>,
    folders: Vec<String>,
    broken: &[String],
    part: &mut Part,
    read: &mut Read,
) {
    let mut rest = Rest::default();
    take(files, broken, part, &mut rest, read);
    part.bare = bare(folders, &rest, &part.found);
}

/// Which folders hold files that are no images of the set, and what these are.
#[derive(Debug, Default)]
pub(super) struct Rest(BTreeMap<String, Held>);

impl Rest {
    pub fn merge(&mut self, other: Rest) {
        for (folder, held) in other.0 {
            self.add(&folder, held);
        }
    }

    /// Pictures come before all else: a folder of these may be a class.
    fn add(&mut self, folder: &str, held: Held) {
        match self.0.get_mut(folder) {
            None => drop(self.0.insert(folder.to_string(), held)),
            Some(known) => {
                let is_more = |held: &Held| (held.are_pictures, held.what.is_some());
                if is_more(&held) > is_more(known) {
                    *known = held;
                }
            }
        }
    }
}

/// Adds to `part` what of `files` is data, all files of a folder together, and to `rest` the
/// others.
pub(super) fn take(
    files: Vec<Listed>,
    broken: &[String],
    part: &mut Part,
    rest: &mut Rest,
    read: &mut Read,
) {
    for name in broken {
        let what = Some("a broken link".to_string());
        let are_pictures = true;
        rest.add(folder(name), Held { what, are_pictures });
    }
    let (mut seen, mut roles) = (Vec::new(), Vec::new());
    for file in files {
        if let Some(around) = around_hidden(&file.name) {
            rest.add(around, Held::default());
            if is_hidden_image(&file.name) {
                part.passed.hidden.add(|| file.name);
            }
            continue;
        }
        roles.push(role(&file.name));
        seen.push(file);
    }
    // All files of one key lie beside one another in the order of names.
    let mut order: Vec<usize> = (0..seen.len()).collect();
    order.sort_by(|&a, &b| {
        let name = |i: usize| (seen[i].archive, seen[i].name.as_str(), i);
        name(a).cmp(&name(b))
    });
    let samples = order.chunk_by(|&a, &b| {
        seen[a].archive == seen[b].archive && key(&seen[a].name) == key(&seen[b].name)
    });
    let mut labels: Vec<Option<Label>> = seen.iter().map(|_| None).collect();
    for indices in samples {
        let sample = Sample::new(indices, &seen, &roles, part);
        sample.count_unread(&seen, part, rest);
        for image in sample.images(&seen, part) {
            labels[image] = Some(sample.label(image, &seen, part, read));
        }
    }
    for (file, label) in seen.into_iter().zip(labels) {
        if let Some(label) = label {
            part.found.push(&file.name, label, file.place);
        }
    }
}

/// The files of one key.
struct Sample {
    /// Images called `key.ending`.
    plain: Vec<usize>,
    /// Images called `key.field.ending`.
    compound: Vec<usize>,
    /// Files that are asked for a class.
    fields: Vec<(usize, Field)>,
    /// Other fields, if there is an image.
    others: Vec<usize>,
    /// Files that are not read.
    unread: Vec<usize>,
}

impl Sample {
    fn new(indices: &[usize], seen: &[Listed], roles: &[Role], part: &mut Part) -> Self {
        let mut sample = Sample {
            plain: Vec::new(),
            compound: Vec::new(),
            fields: Vec::new(),
            others: Vec::new(),
            unread: Vec::new(),
        };
        for (at, &index) in indices.iter().enumerate() {
            let name = &seen[index].name;
            let next = indices.get(at + 1).map(|&next| &seen[next].name);
            if next == Some(name) {
                // As when the shard is unpacked, the last member of a name replaces those before
                // it.
                part.passed.replaced.add(|| name.clone());
                continue;
            }
            match &roles[index] {
                Role::Image if stem(name) == key(name) => sample.plain.push(index),
                Role::Image => sample.compound.push(index),
                Role::Label(field) => sample.fields.push((index, *field)),
                Role::Other => sample.others.push(index),
                Role::Unread => sample.unread.push(index),
            }
        }
        if sample.plain.is_empty() && sample.compound.is_empty() {
            sample.unread.append(&mut sample.others);
            for (index, field) in &sample.fields {
                if matches!(field, Field::Cls | Field::ClsText) {
                    part.passed.strays.add(|| seen[*index].name.clone());
                }
            }
        }
        sample
    }

    /// Counts what of the key is not read, and notes where it lies.
    fn count_unread(&self, seen: &[Listed], part: &mut Part, rest: &mut Rest) {
        for index in &self.unread {
            let name = &seen[*index].name;
            let kind = unread_kind(name).unwrap_or_default();
            let held = Held {
                what: Some(format!("files of kinds that are not read ({kind})")),
                are_pictures: is_unread_image_name(name),
            };
            rest.add(folder(name), held);
            part.passed.kinds.add(kind, || name.clone());
        }
        for (index, _) in &self.fields {
            rest.add(folder(&seen[*index].name), Held::default());
        }
    }

    /// Whether the key has more than images.
    fn has_fields(&self) -> bool {
        !self.fields.is_empty() || !self.others.is_empty()
    }

    /// The images that are data.
    fn images(&self, seen: &[Listed], part: &mut Part) -> Vec<usize> {
        let name = |index: &usize| seen[*index].name.as_str();
        let has_fields = self.has_fields();
        let mut taken = self.plain.clone();
        if taken.len() > 1 && has_fields {
            let is_jpeg = |index: &usize| ImageKind::of_name(name(index)) == Some(ImageKind::Jpeg);
            // A mask is not stored as JPEG.
            let first = taken.iter().min();
            let jpeg = taken.iter().filter(|index| is_jpeg(index)).min();
            taken = jpeg.or(first).copied().into_iter().collect();
        } else if taken.len() > 1 {
            for index in &taken[1..] {
                part.passed.sharing.add(|| name(index).to_string());
            }
        }
        let named = |index: &&usize| {
            let field = &stem(name(index))[key(name(index)).len() + 1..];
            IMAGE_FIELDS.contains(&field.to_ascii_lowercase().as_str())
        };
        let of_its_own = |index: &&usize| {
            let stem = stem(name(index));
            let field = &stem[key(stem).len() + 1..];
            let labelled = self.fields.iter().any(|(label, _)| {
                label_field(name(label)).is_some_and(|(labelled, _)| labelled == stem)
            });
            labelled || !field.contains(|c: char| c.is_alphabetic())
        };
        let image_field = self.compound.iter().find(named);
        if !taken.is_empty() {
            taken.extend(self.compound.iter().filter(of_its_own));
        } else if let Some(image) = image_field.filter(|_| self.compound.len() > 1) {
            taken.push(*image);
            taken.extend(self.compound.iter().filter(of_its_own));
        } else {
            taken.extend(&self.compound);
            for index in self.compound.iter().skip(1).filter(|_| has_fields) {
                part.passed.sharing.add(|| name(index).to_string());
            }
        }
        for index in self.plain.iter().chain(&self.compound) {
            if !taken.contains(index) {
                part.passed.second.add(|| name(index).to_string());
            }
        }
        taken
    }

    /// What the files beside `image` say of its class: those of its whole stem first, then those of
    /// its key.
    fn label(&self, image: usize, seen: &[Listed], part: &mut Part, read: &mut Read) -> Label {
        let image = &seen[image].name;
        let mut asked: Vec<(bool, Field, usize)> = self
            .fields
            .iter()
            .filter_map(|(index, field)| {
                let (labelled, _) = label_field(&seen[*index].name)?;
                let by_key = labelled == key(image);
                (by_key || labelled == stem(image)).then_some((
                    by_key && labelled != stem(image),
                    *field,
                    *index,
                ))
            })
            .collect();
        asked.sort_unstable();
        let mut label = match self.has_fields() {
            true => Label::Silent,
            false => Label::None,
        };
        for (_, field, index) in asked {
            let file = &seen[index];
            if field == Field::Text && (part.captions || label != Label::Silent) {
                continue;
            }
            let limit = match field {
                Field::Json => MAX_JSON,
                Field::Cls | Field::ClsText | Field::Text => MAX_LABEL,
            };
            let said = match read(file, limit) {
                Err(e) => Label::Bad(format!("could not be read ({e})")),
                Ok(text) if text.len() as u64 > limit && field != Field::Text => {
                    Label::Bad(format!(
                        "it is larger than the {} KiB that are read of one",
                        limit >> 10
                    ))
                }
                Ok(text) => match field {
                    Field::Cls | Field::ClsText => labels::cls(&text),
                    Field::Json => labels::json(&text),
                    Field::Text => labels::text(&text),
                },
            };
            part.captions |= field == Field::Text && said == Label::Silent;
            let named = |problem: String| format!("`{}`: {problem}", file.name);
            match said {
                Label::Silent | Label::None => {}
                Label::Field(_) | Label::Text(_) => return said,
                Label::Bad(problem) => return Label::Bad(named(problem)),
                Label::Unreadable(problem) => label = Label::Unreadable(named(problem)),
            }
        }
        if label == Label::Silent {
            let fields = self.fields.iter().map(|(index, _)| index);
            let endings = fields.chain(&self.others).filter_map(|index| {
                let name = &seen[*index].name;
                name.get(key(name).len()..)
                    .filter(|field| !field.is_empty())
            });
            for ending in endings {
                part.silent.insert(ending.to_lowercase());
            }
        }
        label
    }
}

fn folder(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The folders with no image in or below them: those listed, and those that hold other files.
pub(super) fn bare(folders: Vec<String>, rest: &Rest, found: &FoundList) -> Vec<Bare> {
    let Rest(rest) = rest;
    let (mut with_images, mut last) = (BTreeSet::new(), None);
    for image in found.iter() {
        let mut folder = folder(image.name);
        // Most images lie beside the one before them.
        if last.replace(folder) == Some(folder) {
            continue;
        }
        while !folder.is_empty() && with_images.insert(folder) {
            folder = self::folder(folder);
        }
    }
    let mut names: BTreeSet<String> = folders.into_iter().collect();
    for folder in rest.keys() {
        let mut folder = folder.as_str();
        while !folder.is_empty() && names.insert(folder.to_string()) {
            folder = self::folder(folder);
        }
    }
    names.retain(|name| {
        let hidden = name.split('/').any(hides);
        !name.is_empty() && !hidden && !with_images.contains(name.as_str())
    });
    let bare = |name: String| {
        let below = format!("{name}/");
        let within = || {
            let folders = rest.range(below.clone()..);
            let folders = folders.take_while(|(folder, _)| folder.starts_with(&below));
            rest.get(&name)
                .into_iter()
                .chain(folders.map(|(_, held)| held))
        };
        let pictures = within().find(|held| held.are_pictures);
        let held = pictures.or_else(|| within().find(|held| held.what.is_some()));
        Bare {
            held: held.cloned().unwrap_or_default(),
            name,
        }
    };
    names.into_iter().map(bare).collect()
}
