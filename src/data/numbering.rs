//! Which number a class has: by the sorted names of all classes, by the numbers that labels are, or
//! as in another data set.

use std::collections::BTreeSet;

use super::Classes;
use super::part::{ClassName, Part};
use crate::error::{Error, Result, hinted, nearest};

/// The classes of all parts: those `given`, else by sorted names, or up to the largest number.
pub(super) fn numbering(parts: &[Part], given: Option<&Classes>) -> Result<Classes> {
    let (mut names, mut largest) = (BTreeSet::new(), None);
    // The first image without a class, with a number, with a name.
    let mut first: [Option<String>; 3] = [None, None, None];
    let mut last = None;
    for part in parts {
        for found in part.found.iter() {
            let kind = match part.found.class(&found) {
                None => 0,
                Some(ClassName::Number(number)) => {
                    largest = largest.max(Some(*number));
                    1
                }
                Some(ClassName::Name(name)) => {
                    if last.replace(name) != Some(name) {
                        names.insert(&**name);
                    }
                    2
                }
            };
            first[kind].get_or_insert_with(|| part.path_of(found.name));
        }
    }
    let mixed = |what: &str, a: &str, b: &str| {
        Err(hinted(
            format!("{what}: compare {a} with {b}"),
            "give every image a class of one kind: a sub-folder's name, or a number in .cls",
        ))
    };
    match first {
        [Some(none), Some(one), _] | [Some(none), _, Some(one)] => {
            mixed("some images have a class, others none", &one, &none)
        }
        [_, Some(number), Some(name)] => {
            mixed("some classes are numbers, others names", &number, &name)
        }
        [Some(_), None, None] => Ok(Classes::default()),
        [None, Some(path), None] => numbered(largest.unwrap_or(0), &path, given),
        [None, None, Some(_)] => match given {
            Some(given) => Ok(given.clone()),
            None => named(parts, names),
        },
        [None, None, None] => Err(nothing(parts)),
    }
}

/// The error of a data set without images.
fn nothing(parts: &[Part]) -> Error {
    let bad: usize = parts.iter().map(|part| part.bad).sum();
    let empty = parts
        .iter()
        .find_map(|part| Some((part, part.empty.as_ref()?)));
    match empty {
        _ if bad > 0 => hinted(
            format!("no image is left: {bad} were left out"),
            "the warnings above say why",
        ),
        Some((part, reason)) => hinted(
            format!("{}: {reason}", part.path.display()),
            "make the shard again",
        ),
        None => hinted(
            "the data set holds no images",
            format!("images end in {}", super::image_kind::ENDINGS),
        ),
    }
}

fn named(parts: &[Part], names: BTreeSet<&str>) -> Result<Classes> {
    if let Some(name) = names.iter().find(|name| name.contains("\\x")) {
        return Err(hinted(
            format!("the class folder `{name}` has a name that is not UTF-8"),
            "rename it: a model keeps its classes' names as text",
        ));
    }
    for part in parts {
        let bare = part
            .bare
            .iter()
            .find(|bare| !names.contains(bare.name.as_str()));
        if let Some(bare) = bare {
            let instead = match &bare.held.what {
                Some(what) => format!(", but {what}"),
                None => String::new(),
            };
            return Err(hinted(
                format!(
                    "{}: the class folder `{}` holds no images{instead}",
                    part.path.display(),
                    bare.name
                ),
                "the classes' sorted names are their numbers: fill the folder, or remove it (of a \
                 shard: make it again without it)",
            ));
        }
    }
    Ok(Classes::named(names))
}

fn numbered(largest: u32, path: &str, given: Option<&Classes>) -> Result<Classes> {
    let Some(given) = given else {
        return Ok(Classes::named(
            (0..=largest).map(|number| number.to_string()),
        ));
    };
    let is_numbered = given
        .iter()
        .zip(0..)
        .all(|(class, i)| class.wnid == i.to_string());
    if !is_numbered {
        let name = given.get(0).map_or("", |class| class.wnid.as_str());
        return Err(hinted(
            format!(
                "{path}: the class is a number, where the training set has names (`{name}`, ...)"
            ),
            "give both sets the same kind of labels",
        ));
    }
    if largest as usize >= given.len() {
        return Err(hinted(
            format!(
                "class {largest} is not among the training set's 0 to {}",
                given.len() - 1
            ),
            "see the .cls or .json members of the shards",
        ));
    }
    Ok(given.clone())
}

/// The error of the image at `path`, whose class is none of `classes`.
pub(super) fn unknown_class(path: &str, class: &str, classes: &Classes) -> Error {
    let known = nearest(class, classes.iter().map(|class| class.wnid.as_str()));
    let hint = known.map_or(String::new(), |known| {
        format!("the nearest of them is `{known}`")
    });
    let count = classes.len();
    hinted(
        format!("{path}: the class `{class}` is not among the training set's {count}"),
        hint,
    )
}
