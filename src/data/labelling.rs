//! The class of every image, once all parts are known: what its fields say, else the folder it lies
//! in.
//!
//! Folders name classes as in torchvision's `ImageFolder`: the first level below the path, whatever
//! lies deeper. A level that has one folder for all images (`train/` in a shard) names none, and
//! the next one does. Where every path has a wnid of ImageNet in it, that is the class at any
//! level.

use super::found::{Decision, Found, named};
use super::labels::is_wnid;
use super::part::{Bare, ClassName, Kind, Label, Part};
use crate::error::{Result, hinted};

/// Folders that name the parts of a data set, not classes.
const SPLITS: [&str; 12] = [
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "test",
    "testing",
    "eval",
    "images",
    "image",
    "img",
    "data",
];

/// Whether a folder of this name says nothing of what is on its images.
pub(super) fn names_no_class(name: &str) -> bool {
    SPLITS.contains(&name.to_ascii_lowercase().as_str())
}

/// Where the labels come from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// `.cls` and `.json`.
    pub fields: bool,
    /// `.txt`.
    pub texts: bool,
    /// The folders between a part's path and its classes, where that is not the path itself.
    pub below: Option<String>,
    /// The wnid in a path, wherever it is.
    pub wnids: bool,
}

/// Decides the class of every image of `parts`.
///
/// An image whose label cannot be is an error that names it; with `skip_bad` it is reported,
/// counted and left out.
pub(super) fn label(parts: &mut [Part], skip_bad: bool) -> Result<Origin> {
    let any = |parts: &[Part], is: fn(&Label) -> bool| {
        parts
            .iter()
            .flat_map(|part| part.found.iter())
            .any(|found| is(found.label))
    };
    let mut origin = Origin {
        fields: any(parts, |label| {
            matches!(label, Label::Field(_) | Label::Bad(_))
        }),
        ..Origin::default()
    };
    for kind in [Kind::Folder, Kind::Shard] {
        by_folder(parts, kind, &mut origin)?;
    }
    let captions = parts.iter().any(|part| part.captions);
    origin.texts = !origin.fields
        && !captions
        && any(parts, |label| matches!(label, Label::Text(_)))
        && several_classes(parts).is_none();
    for part in parts.iter_mut() {
        let mut problems = Vec::new();
        part.found.decide(|found| {
            let left_out = match found.label {
                Label::Field(class) => return Decision::Class(Some(class.clone())),
                Label::Text(class) if origin.texts => {
                    return Decision::Class(Some(class.clone()));
                }
                Label::Bad(problem) => Some(problem),
                Label::Unreadable(problem) => {
                    // Where other images have labels in fields, this one's is lost.
                    Some(problem).filter(|_| origin.fields)
                }
                _ => None,
            };
            match left_out {
                Some(problem) => {
                    problems.push(problem.clone());
                    Decision::LeaveOut
                }
                None => Decision::Keep,
            }
        });
        let whole = part.found.len();
        for problem in &problems {
            let message = format!(
                "{}: {problem}; {whole} images are whole",
                part.path.display()
            );
            if !skip_bad {
                return Err(hinted(
                    message,
                    "mend the label, or leave the image out with --skip-bad-images",
                ));
            }
            tracing::warn!("{message}");
        }
        part.bad += problems.len();
    }
    Ok(origin)
}

/// The first two classes that folders name, if they name two.
fn several_classes(parts: &[Part]) -> Option<[&ClassName; 2]> {
    let mut classes = parts.iter().flat_map(|part| {
        let found = part.found.iter();
        found.filter_map(|found| part.found.class(&found))
    });
    let first = classes.next()?;
    classes
        .find(|class| *class != first)
        .map(|other| [first, other])
}

/// The folders of a path; of an image's the last part is its own name.
fn folders(name: &str) -> impl Iterator<Item = &str> {
    name.rsplit_once('/')
        .map_or("", |(folders, _)| folders)
        .split('/')
        .filter(|f| !f.is_empty())
}

/// Sets the class of all images of parts of this kind by their folders.
fn by_folder(parts: &mut [Part], kind: Kind, origin: &mut Origin) -> Result<()> {
    let of_kind = |part: &&mut Part| part.kind == kind;
    let level = Level::of(parts, kind);
    for part in parts.iter_mut().filter(of_kind) {
        let has_fields = |found: Found| matches!(found.label, Label::Field(_) | Label::Bad(_));
        if part.found.iter().any(has_fields) {
            // Folders may hold what they like.
            part.bare.clear();
            continue;
        }
        let mut last: Option<ClassName> = None;
        part.found.decide(|found| {
            let class = level.class(found.name);
            // Most images are of the class of the one before them.
            let is_last = match (&last, class) {
                (Some(ClassName::Name(last)), Some(class)) => **last == *class,
                (None, None) => true,
                _ => false,
            };
            if !is_last {
                last = class.map(named);
            }
            Decision::Class(last.clone())
        });
        if kind == Kind::Folder {
            no_loose(part)?;
        }
        part.bare = bare_classes(part, level);
    }
    match level {
        Level::Wnid => origin.wnids = true,
        Level::Depth(0) => {}
        Level::Depth(depth) => {
            let first = parts
                .iter()
                .filter(|part| part.kind == kind)
                .flat_map(|part| part.found.iter())
                .next();
            origin.below = first.map(|found| {
                folders(found.name)
                    .take(depth)
                    .collect::<Vec<_>>()
                    .join("/")
            });
        }
    }
    Ok(())
}

/// Which of an image's folders names its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// The one that is a wnid.
    Wnid,
    /// So many below the part's path.
    Depth(usize),
}

impl Level {
    fn of(parts: &[Part], kind: Kind) -> Self {
        let parts = || parts.iter().filter(|part| part.kind == kind);
        let images = || {
            parts()
                .flat_map(|part| part.found.iter())
                .map(|found| found.name)
        };
        let mut wnids = images().map(|name| folders(name).any(is_wnid)).peekable();
        if wnids.peek().is_some() && wnids.all(|has| has) {
            return Level::Wnid;
        }
        // A folder whose every picture is passed over may be a class.
        let unread = || {
            let bare = parts().flat_map(|part| &part.bare);
            bare.filter(|bare| bare.held.are_pictures)
                .map(|bare| bare.name.as_str())
        };
        let mut depth = 0;
        loop {
            let at = |name| folders(name).nth(depth);
            let Some(common) = images().next().and_then(at) else {
                break;
            };
            let for_all = images()
                .all(|name| at(name) == Some(common) && folders(name).nth(depth + 1).is_some())
                && unread().all(|name| name.split('/').nth(depth) == Some(common));
            if !for_all {
                let one = images().all(|name| at(name) == Some(common));
                return match one && unread().next().is_none() {
                    // All are of one class, called by the first folder that says what.
                    true => Self::of_one(images().next().unwrap_or_default(), depth),
                    false => Level::Depth(depth),
                };
            }
            depth += 1;
        }
        Level::Depth(0)
    }

    fn of_one(name: &str, deepest: usize) -> Self {
        let first = folders(name)
            .take(deepest + 1)
            .position(|folder| !names_no_class(folder));
        Level::Depth(first.unwrap_or(0))
    }

    /// The class of the image `name`.
    fn class(self, name: &str) -> Option<&str> {
        match self {
            Level::Wnid => folders(name).find(|folder| is_wnid(folder)),
            Level::Depth(depth) => folders(name).nth(depth),
        }
    }

    /// Whether a folder of this name would be a class, if it held images, where `image` is one.
    fn is_class(self, folder: &str, image: &str) -> bool {
        let parts = || folder.split('/');
        match self {
            Level::Wnid => parts().next_back().is_some_and(is_wnid),
            Level::Depth(depth) => {
                parts().count() == depth + 1 && parts().take(depth).eq(folders(image).take(depth))
            }
        }
    }
}

/// Refuses images beside class folders: they have no class.
fn no_loose(part: &Part) -> Result<()> {
    let mut loose = part.found.iter().filter(|found| found.class.is_none());
    let mut in_folders = part.found.iter().filter(|found| found.class.is_some());
    match (loose.next(), in_folders.next()) {
        (Some(one), Some(other)) => Err(hinted(
            format!(
                "{}: {} images (`{}`, ...) lie beside class folders (`{}`, ...)",
                part.path.display(),
                1 + loose.count(),
                one.name,
                folders(other.name).next().unwrap_or_default()
            ),
            "move them into a class folder, or name the folders with labels and those without \
             separately",
        )),
        _ => Ok(()),
    }
}

/// The folders that would be classes if they held images, by the class's name.
fn bare_classes(part: &mut Part, level: Level) -> Vec<Bare> {
    let bare = std::mem::take(&mut part.bare);
    let Some(image) = part.found.iter().find(|found| found.class.is_some()) else {
        return Vec::new();
    };
    // Beside `images/` lies `labels/`, and neither is a class.
    let are_splits = part
        .found
        .used()
        .into_iter()
        .flatten()
        .all(|class| matches!(class, ClassName::Name(name) if names_no_class(name)));
    bare.into_iter()
        .filter(|bare| level.is_class(&bare.name, image.name))
        .filter(|bare| bare.held.are_pictures || !are_splits)
        .map(|bare| Bare {
            name: bare.name.rsplit('/').next().unwrap_or_default().to_string(),
            ..bare
        })
        .collect()
}
