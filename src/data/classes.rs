//! Classes: index, name in the data (ImageNet's wnid), words; and what a user may call one.
//!
//! Sorted names give the index, so ImageNet's thousand wnids get ImageNet's indices. The words of a wnid come from
//! the embedded list of ImageNet-1k, whichever subset is used.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::{Result, hinted, usage};

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

/// One class; its index is its place in [`Classes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Its name in the data: a folder, the content of a `.cls`, ImageNet's wnid.
    pub wnid: String,
    /// Its names in words, separated by commas; the name itself where no better is known.
    pub words: String,
}

/// The classes of a data set or a model, by index. None: the images have no labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Entry>", into = "Vec<Entry>")]
pub struct Classes(Vec<Class>);

/// A class as a bundle's metadata holds it.
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
    /// Classes named in the order of their indices; wnids of ImageNet-1k get their words.
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

    /// The first of a class's words: what a label on a picture says.
    pub fn title(&self, index: u32) -> Option<&str> {
        let words = &self.get(index)?.words;
        Some(words.split(',').next().unwrap_or(words).trim())
    }

    /// The classes that `spec` names: an index, a wnid, one of a class's words or all of them, a list of these
    /// separated by commas, or `all`.
    ///
    /// A class's words contain commas, so the longest part of a list that names one class is taken as one:
    /// `tench, Tinca tinca, 207` is two classes. Case does not matter, `_` is a blank. Order and repetitions are
    /// kept. What names no class, or several, is a usage error with the nearest names.
    pub fn resolve(&self, spec: &str) -> Result<Vec<u32>> {
        if self.is_empty() {
            return Err(hinted(
                format!("class `{spec}` asked for, but there are no classes"),
                "the model or the data set has no labels; leave the class out",
            ));
        }
        if normal(spec) == "all" {
            return Ok((0..self.len() as u32).collect());
        }
        let parts: Vec<&str> = spec.split(',').collect();
        let (mut found, mut at) = (Vec::new(), 0);
        while at < parts.len() {
            let longest = (at + 1..=parts.len()).rev().find_map(|end| {
                match self.matches(&parts[at..end].join(","))[..] {
                    [one] => Some((one, end)),
                    _ => None,
                }
            });
            let Some((one, end)) = longest else {
                return Err(self.not_one(parts[at].trim()));
            };
            found.push(one);
            at = end;
        }
        Ok(found)
    }

    /// All classes that `name` may mean: its index alone if it is a number, else every class with that name.
    fn matches(&self, name: &str) -> Vec<u32> {
        let name = normal(name);
        if let Ok(index) = name.parse::<u32>() {
            return self.get(index).map(|_| index).into_iter().collect();
        }
        let is_called = |class: &Class| {
            normal(&class.wnid) == name
                || normal(&class.words) == name
                || class.words.split(',').any(|word| normal(word) == name)
        };
        (0..self.len() as u32)
            .filter(|&i| self.get(i).is_some_and(is_called))
            .collect()
    }

    fn not_one(&self, name: &str) -> crate::error::Error {
        let several = self.matches(name);
        if !several.is_empty() {
            let list: Vec<String> = several.iter().map(|&i| self.described(i)).collect();
            return usage(
                format!("class `{name}` is ambiguous: {}", list.join("; ")),
                "name it by its index",
            );
        }
        if name.parse::<i64>().is_ok() {
            let last = self.len() - 1;
            return usage(
                format!("there is no class {name}"),
                format!("classes run from 0 to {last}"),
            );
        }
        let list: Vec<String> = self
            .nearest(name)
            .into_iter()
            .map(|i| self.described(i))
            .collect();
        usage(
            format!("there is no class `{name}`"),
            format!("the nearest are {}", list.join("; ")),
        )
    }

    /// The five classes whose names are most like `name`; a name that contains it counts as very like.
    fn nearest(&self, name: &str) -> Vec<u32> {
        let name = normal(name);
        let likeness = |word: &str| {
            let word = normal(word);
            let contains = !name.is_empty() && word.contains(&name);
            strsim::jaro_winkler(&word, &name) + f64::from(u8::from(contains))
        };
        let mut scored: Vec<(f64, u32)> = self
            .iter()
            .zip(0..)
            .map(|(class, i)| {
                let names = class.words.split(',').chain([class.wnid.as_str()]);
                (names.map(likeness).fold(0.0, f64::max), i)
            })
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().take(5).map(|(_, i)| i).collect()
    }

    fn described(&self, index: u32) -> String {
        match self.get(index) {
            Some(class) if class.words != class.wnid => {
                format!("{index} ({}: {})", class.wnid, class.words)
            }
            Some(class) => format!("{index} ({})", class.wnid),
            None => index.to_string(),
        }
    }
}

fn normal(name: &str) -> String {
    name.trim().to_lowercase().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    #[test]
    fn imagenet_has_its_thousand_classes_in_the_order_of_their_wnids() {
        let classes = Classes::imagenet();
        assert_eq!(classes.len(), 1000);
        assert!(classes.0.is_sorted_by(|a, b| a.wnid < b.wnid));
        assert_eq!(classes.index_of("n02099601"), Some(207));
        assert_eq!(classes.title(0), Some("tench"));
    }

    #[test]
    fn a_class_is_found_by_index_wnid_and_any_of_its_words() {
        let classes = Classes::imagenet();
        for spec in ["207", "golden retriever", "Golden_Retriever", " n02099601 "] {
            assert_eq!(classes.resolve(spec).unwrap(), [207], "{spec}");
        }
        assert_eq!(classes.resolve("Tinca tinca").unwrap(), [0]);
        assert_eq!(classes.resolve("all").unwrap().len(), 1000);
    }

    #[test]
    fn a_list_may_hold_words_that_contain_commas() {
        let classes = Classes::imagenet();
        assert_eq!(classes.resolve("tench, Tinca tinca").unwrap(), [0]);
        assert_eq!(
            classes
                .resolve("goldfish,tench, Tinca tinca, 207,1")
                .unwrap(),
            [1, 0, 207, 1]
        );
    }

    #[test]
    fn unknown_and_ambiguous_names_list_what_may_be_meant() {
        let classes = Classes::imagenet();
        let message = |spec: &str| report(&classes.resolve(spec).unwrap_err());
        let (text, code) = message("golden retriver");
        assert!(text.contains("207 (n02099601: golden retriever)"), "{text}");
        assert_eq!(code, 2);
        assert!(message("retriever").0.contains("golden retriever"));
        let (text, _) = message("crane");
        assert!(text.contains("134") && text.contains("517"), "{text}");
        assert!(message("1000").0.contains("0 to 999"));
        assert!(message("-1").0.contains("0 to 999"));
        assert!(message("tench,,goldfish").0.contains("no class ``"));
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
