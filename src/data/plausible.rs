//! What is said of a data set that was opened: what it holds, what was passed over, and what of it
//! is hard to believe.

use std::collections::BTreeSet;
use std::path::Path;

use super::Classes;
use super::labelling::{Origin, names_no_class};
use super::part::{ClassName, Kind, Label, Part, PassedOver, Tally};

/// How many images a data set has, of which classes, and where the classes come from.
pub(super) fn summary(images: usize, classes: &Classes, origin: &Origin) -> String {
    let labels = match (classes.len(), origin) {
        (0, _) => return format!("{images} images without labels"),
        (_, Origin { fields: true, .. }) => "labels in fields".to_string(),
        (_, Origin { texts: true, .. }) => "labels in .txt".to_string(),
        (_, Origin { wnids: true, .. }) => "a wnid in each path".to_string(),
        (
            _,
            Origin {
                below: Some(around),
                ..
            },
        ) => format!("the folders in {around}/"),
        _ => "a folder each".to_string(),
    };
    let classes = match classes.len() {
        1 => "1 class".to_string(),
        several => format!("{several} classes"),
    };
    format!("{images} images of {classes} ({labels})")
}

/// What was passed over, a line a reason.
pub(super) fn passed_over(parts: &[Part]) -> Vec<String> {
    let mut all = PassedOver::default();
    for part in parts {
        all.merge(&part.passed);
    }
    let mut lines: Vec<String> = all.kinds.line().into_iter().collect();
    let mut say = |tally: &Tally, what: &str| {
        let Tally { count, first } = tally;
        match count {
            0 => {}
            1 => lines.push(format!("1 file {what}: `{first}`")),
            _ => lines.push(format!("{count} files {what}: `{first}`, ...")),
        }
    };
    say(
        &all.second,
        "passed over as a second image of one key, such as a mask",
    );
    say(
        &all.replaced,
        "passed over for a later one of the same name in their shard",
    );
    say(&all.links, "passed over as links that lead to no file");
    say(
        &all.hidden,
        "passed over as hidden, or below hidden folders",
    );
    say(&all.strays, "with labels of no image");
    lines
}

/// Images that may be one picture twice, or a mask, and are taken.
pub(super) fn sharing(parts: &[Part]) -> Option<String> {
    let mut all = Tally::default();
    parts
        .iter()
        .for_each(|part| all.merge(&part.passed.sharing));
    (all.count > 0).then(|| {
        format!(
            "{} images share their name, but for the ending, with another (`{}`): all are taken",
            all.count, all.first
        )
    })
}

/// What of the labels is hard to believe. `given`: the classes are another data set's.
pub(super) fn doubts(
    parts: &[Part],
    classes: &Classes,
    origin: &Origin,
    labels: &BTreeSet<u32>,
    given: bool,
) -> Vec<String> {
    let mut doubts = Vec::new();
    let found = || parts.iter().flat_map(|part| part.found.iter());
    let by_folder = !classes.is_empty() && !origin.fields && !origin.texts;
    if classes.len() == 1 {
        let name = classes.get(0).map_or("", |class| class.wnid.as_str());
        doubts.push(format!(
            "all images are of one class, `{name}`; classes are the folders in the path that \
             is named"
        ));
    } else if by_folder && classes.iter().all(|class| names_no_class(&class.wnid)) {
        let names: Vec<&str> = classes.iter().map(|class| class.wnid.as_str()).collect();
        doubts.push(format!(
            "the classes are called {}: name one of these folders itself if they are parts \
             of the data set",
            names.join(", ")
        ));
    }
    if !given && (origin.fields || origin.texts) {
        doubts.extend(unused(classes, labels));
    }
    let count = |is: fn(&Label) -> bool| found().filter(|found| is(found.label)).count();
    let mut silent = count(|label| *label == Label::Silent);
    let mut texts = count(|label| matches!(label, Label::Text(_)));
    let endings = parts.iter().flat_map(|part| &part.silent);
    let mut endings: BTreeSet<&str> = endings.map(String::as_str).collect();
    // Where one text is a caption, all are.
    if texts > 0 && parts.iter().any(|part| part.captions) {
        silent += std::mem::take(&mut texts);
        endings.insert(".txt");
    }
    let unread = found().filter_map(|found| match found.label {
        Label::Unreadable(problem) => Some(problem.as_str()),
        _ => None,
    });
    let unread: Vec<&str> = unread.collect();
    if let Some(first) = unread.first() {
        doubts.push(format!(
            "{} files beside images cannot be read, and may have held their labels: {first}",
            unread.len()
        ));
    }
    if texts > 0 && !origin.fields && !origin.texts {
        doubts.push(format!(
            "the numbers in .txt beside {texts} images are not taken: the folders name several \
             classes, and such a number may be a score"
        ));
    }
    if silent > 0 && !origin.fields && !origin.texts {
        let endings: Vec<&str> = endings.into_iter().take(6).collect();
        doubts.push(format!(
            "{silent} images have files beside them ({}) that give no label{}: labels are a \
             number or a name in .cls, `label` or `cls` in .json, a number in .txt",
            endings.join(", "),
            match classes.is_empty() {
                true => "",
                false => ", and are of the class of their folder",
            }
        ));
    }
    doubts.extend(unlabelled_folders(parts, classes));
    doubts
}

/// Numbers that no image has: the classes may be counted from 1, or be no classes.
fn unused(classes: &Classes, labels: &BTreeSet<u32>) -> Option<String> {
    let all = 0..classes.len() as u32;
    let unused: Vec<u32> = all.filter(|number| !labels.contains(number)).collect();
    let is_numbered = classes
        .iter()
        .zip(0..)
        .all(|(class, i)| class.wnid == format!("{i}"));
    if unused.is_empty() || !is_numbered {
        return None;
    }
    let last = classes.len() - 1;
    if labels.first() == Some(&1) {
        let unused = match unused.len() {
            1 => format!("no image has class 0 of 0 to {last}"),
            several => format!("{several} of the classes 0 to {last} have no image, as class 0"),
        };
        return Some(format!(
            "labels begin at 1: {unused}; ImageNet's devkit and MATLAB count from 1, and classes \
             here from 0"
        ));
    }
    let named: Vec<String> = unused.iter().take(5).map(u32::to_string).collect();
    let more = if unused.len() > 5 { ", ..." } else { "" };
    Some(format!(
        "{} of the classes 0 to {last} have no image: {}{more}",
        unused.len(),
        named.join(", ")
    ))
}

/// Folders, or the files in them, that were named one by one: their names are no labels.
pub(super) fn unlabelled_folders(parts: &[Part], classes: &Classes) -> Option<String> {
    if !classes.is_empty() {
        return None;
    }
    let folders: BTreeSet<&Path> = parts
        .iter()
        .filter(|part| part.kind != Kind::Shard)
        .map(|part| part.path.as_path())
        .collect();
    let around = folders.first()?.parent()?;
    (folders.len() > 1).then(|| {
        format!(
            "the images of {} folders have no labels; name the folder around them (as {}) for \
             one class a folder",
            folders.len(),
            around.display()
        )
    })
}

/// The classes' numbers that images have.
pub(super) fn used(parts: &[Part]) -> BTreeSet<u32> {
    let classes = parts.iter().flat_map(|part| part.found.used()).flatten();
    let number = classes.filter_map(|class| match class {
        ClassName::Number(number) => Some(*number),
        ClassName::Name(_) => None,
    });
    number.collect()
}
