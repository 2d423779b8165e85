//! Classes: index, name in the data (ImageNet's wnid), words. Names that a user may use:
//! [`super::class_spec`].
//!
//! Sorted names give the indices, so ImageNet's thousand wnids get ImageNet's indices. The words of
//! a wnid come from the embedded list of ImageNet-1k, whichever subset is used.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::labels::is_wnid;

/// `index<TAB>wnid<TAB>words`, with one comment line that names its source.
static IMAGENET: LazyLock<Vec<(&str, &str)>> = LazyLock::new(|| {
    include_str!("imagenet_classes.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut fields = line.splitn(3, '\t').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .collect()
});

static WORDS: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| IMAGENET.iter().copied().collect());

/// One class; its index is its position in [`Classes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Its name in the data: a folder name, the content of a `.cls`, ImageNet's wnid.
    pub wnid: String,
    /// Its names in words, separated by commas; by default the name itself.
    pub words: String,
}

/// The classes of a data set or a model, by index. Empty: the images have no labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Entry>", into = "Vec<Entry>")]
pub struct Classes(Vec<Class>);

/// A class as stored in a bundle's metadata.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    index: usize,
    wnid: String,
    words: String,
}

impl From<Classes> for Vec<Entry> {
    fn from(classes: Classes) -> Self {
        let entry = |(index, Class { wnid, words })| Entry { index, wnid, words };
        classes.0.into_iter().enumerate().map(entry).collect()
    }
}

impl TryFrom<Vec<Entry>> for Classes {
    type Error = String;

    fn try_from(entries: Vec<Entry>) -> std::result::Result<Self, String> {
        let class = |(place, Entry { index, wnid, words })| match place == index {
            true => Ok(Class { wnid, words }),
            false => Err(format!("class {place} has the index {index}")),
        };
        let classes: std::result::Result<_, String> =
            entries.into_iter().enumerate().map(class).collect();
        classes.map(Self)
    }
}

impl Classes {
    /// Classes with these names in index order; wnids of ImageNet-1k get their words.
    pub fn named<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let class = |name: S| {
            let wnid: String = name.into();
            let words = WORDS
                .get(wnid.as_str())
                .unwrap_or(&wnid.as_str())
                .to_string();
            Class { wnid, words }
        };
        Self(names.into_iter().map(class).collect())
    }

    /// The thousand classes of ImageNet-1k.
    pub fn imagenet() -> Self {
        Self::named(IMAGENET.iter().map(|(wnid, _)| *wnid))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Class> {
        self.0.iter()
    }

    pub fn get(&self, index: u32) -> Option<&Class> {
        self.0.get(index as usize)
    }

    /// The index of the class with exactly this name in the data.
    pub fn index_of(&self, wnid: &str) -> Option<u32> {
        self.0.iter().position(|c| c.wnid == wnid).map(|i| i as u32)
    }

    /// The first of a class's words, for the label of an image.
    pub fn title(&self, index: u32) -> Option<&str> {
        let words = &self.get(index)?.words;
        Some(words.split(',').next().unwrap_or(words).trim())
    }

    /// ImageNet-1k's number of the class at `index`, if all classes are named by wnids.
    pub fn imagenet_number(&self, index: u32) -> Option<u32> {
        let wnid = self.get(index)?.wnid.as_str();
        let number = IMAGENET.iter().position(|(known, _)| *known == wnid)?;
        self.are_wnids().then_some(number as u32)
    }

    /// Whether all classes are named by wnids, including some of ImageNet-1k.
    pub(super) fn are_wnids(&self) -> bool {
        self.0.iter().all(|class| is_wnid(&class.wnid))
            && self
                .0
                .iter()
                .any(|class| WORDS.contains_key(class.wnid.as_str()))
    }
}

/// The wnid and the words of ImageNet-1k's class `number`.
pub(super) fn imagenet_class(number: u32) -> Option<(&'static str, &'static str)> {
    IMAGENET.get(number as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagenet_has_its_thousand_classes_in_the_order_of_their_wnids() {
        let classes = Classes::imagenet();
        assert_eq!(classes.len(), 1000);
        assert!(classes.0.is_sorted_by(|a, b| a.wnid < b.wnid));
        assert_eq!(classes.index_of("n02099601"), Some(207));
        assert_eq!(classes.title(0), Some("tench"));
    }

    #[test]
    fn classes_survive_json_and_wrong_indices_do_not() {
        let classes = Classes::named(["n01440764", "other"]);
        let json = serde_json::to_string(&classes).unwrap();
        assert!(
            json.contains(r#"{"index":1,"wnid":"other","words":"other"}"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Classes>(&json).unwrap(), classes);
        let wrong = json.replace(r#""index":1"#, r#""index":2"#);
        assert!(serde_json::from_str::<Classes>(&wrong).is_err());
    }
}
