//! Resolves what a user may call a class: `--class`.
//!
//! In this order: its exact name in the data, or wnid; a number, which is ImageNet's if all classes
//! are wnids, else the index; its name or one of its words, ignoring case. `index:N` is always the
//! index. If a number has two meanings, the first is used and a warning names the other.

use super::Classes;
use super::classes::imagenet_class;
use crate::error::{Error, Result, hinted, usage};

impl Classes {
    /// The indices of the classes that `spec` names: one, a list separated by commas, or `all`.
    ///
    /// A class's words contain commas, so the longest part of a list that names a single class
    /// counts as one: `tench, Tinca tinca, 207` is two classes. Case is ignored, and `_` counts as
    /// a space. Order and repetitions are kept. A part that names no class, or several, is a usage
    /// error that lists the nearest names.
    pub fn resolve(&self, spec: &str) -> Result<Vec<u32>> {
        let (found, notes) = self.resolve_with_notes(spec)?;
        for note in notes {
            tracing::warn!("{note}");
        }
        Ok(found)
    }

    /// The same, with the warnings: about other meanings of a number in `spec`.
    pub fn resolve_with_notes(&self, spec: &str) -> Result<(Vec<u32>, Vec<String>)> {
        if self.is_empty() {
            return Err(hinted(
                format!("class `{spec}` asked for, but there are no classes"),
                "the model or the data set has no labels; leave the class out",
            ));
        }
        if normal(spec) == "all" && self.index_of(spec.trim()).is_none() {
            return Ok(((0..self.len() as u32).collect(), Vec::new()));
        }
        let parts: Vec<&str> = spec.split(',').collect();
        let commas = |class: &super::Class| {
            class
                .words
                .matches(',')
                .count()
                .max(class.wnid.matches(',').count())
        };
        let most = 1 + self.iter().map(commas).max().unwrap_or(0);
        let (mut found, mut notes, mut at) = (Vec::new(), Vec::new(), 0);
        while at < parts.len() {
            let longest = (at + 1..=parts.len().min(at + most)).rev().find_map(|end| {
                let name = parts[at..end].join(",");
                match self.matches(&name)[..] {
                    [one] => Some((one, end, name)),
                    _ => None,
                }
            });
            let Some((one, end, name)) = longest else {
                return Err(self.not_one(parts[at].trim()));
            };
            notes.extend(self.second_reading(name.trim(), one));
            found.push(one);
            at = end;
        }
        notes.dedup();
        Ok((found, notes))
    }

    /// All classes that `name` may refer to.
    fn matches(&self, name: &str) -> Vec<u32> {
        let name = name.trim();
        if let Some(exact) = self.index_of(name) {
            return vec![exact];
        }
        if let Some(index) = name.strip_prefix("index:") {
            let index = number(index.trim()).filter(|index| self.get(*index).is_some());
            return index.into_iter().collect();
        }
        if let Some(number) = number(name) {
            return self.by_number(number).into_iter().collect();
        }
        let name = normal(name);
        let called = |is_called: &dyn Fn(&super::Class) -> bool| -> Vec<u32> {
            let all = self.iter().zip(0..);
            all.filter(|(class, _)| is_called(class))
                .map(|(_, index)| index)
                .collect()
        };
        let by_name = called(&|class| normal(&class.wnid) == name);
        if !by_name.is_empty() {
            return by_name;
        }
        called(&|class| {
            normal(&class.words) == name || class.words.split(',').any(|word| normal(word) == name)
        })
    }

    /// The class with this number: ImageNet's number if all classes are wnids.
    fn by_number(&self, number: u32) -> Option<u32> {
        match self.are_wnids() {
            true => self.index_of(imagenet_class(number)?.0),
            false => self.get(number).map(|_| number),
        }
    }

    /// What else `name`, resolved to the class `taken`, may have meant: another class by its
    /// number.
    fn second_reading(&self, name: &str, taken: u32) -> Option<String> {
        let number = number(name)?;
        let by_index = self.get(number).map(|_| number);
        let (other, as_what) = match self.by_number(number).filter(|other| *other != taken) {
            Some(other) if self.are_wnids() => (other, format!("ImageNet's {number}")),
            _ => (
                by_index.filter(|other| *other != taken)?,
                format!("index:{number}"),
            ),
        };
        Some(format!(
            "class {name} is taken as {}, not as {as_what}, which is {}",
            self.described(taken),
            self.described(other)
        ))
    }

    fn not_one(&self, name: &str) -> Error {
        let several = self.matches(name);
        if !several.is_empty() {
            let list: Vec<String> = several.iter().map(|&i| self.described(i)).collect();
            return usage(
                format!("class `{name}` is ambiguous: {}", list.join("; ")),
                "name it by its number, or as index:N",
            );
        }
        let (count, last) = (self.len(), self.len() - 1);
        if let Some((number, (wnid, words))) = number(name)
            .filter(|_| self.are_wnids())
            .and_then(|number| Some((number, imagenet_class(number)?)))
        {
            let by_index = match self.get(number) {
                Some(_) => format!("index:{number} is {}", self.described(number)),
                None => format!("index:0 to index:{last} count the classes there are"),
            };
            return usage(
                format!(
                    "ImageNet's class {number} ({wnid}: {words}) is not among the {count} classes"
                ),
                by_index,
            );
        }
        if name.starts_with("index:") || name.parse::<i64>().is_ok() {
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

    /// The five classes with a name most similar to `name`; containing it counts as very similar.
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

    /// A description of the class at `index`, beginning with a name that [`Self::resolve`] accepts.
    pub fn described(&self, index: u32) -> String {
        let Some(class) = self.get(index) else {
            return format!("index:{index}");
        };
        let names = match class.words == class.wnid {
            true => class.wnid.clone(),
            false => format!("{}: {}", class.wnid, class.words),
        };
        match self.imagenet_number(index) {
            Some(number) => format!("{number} ({names})"),
            None => format!("index:{index} ({names})"),
        }
    }
}

/// A number that consists of digits only.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn normal(name: &str) -> String {
    name.trim().to_lowercase().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

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

    fn read(classes: &Classes, spec: &str) -> (Vec<u32>, String) {
        let (found, notes) = classes.resolve_with_notes(spec).unwrap();
        (found, notes.join("\n"))
    }

    /// Folders 0 to 11, sorted as text: the class named 10 has index 2, and index 10 is named 8.
    #[test]
    fn a_class_called_by_a_number_is_that_class_and_not_that_index() {
        let mut names: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        names.sort();
        let classes = Classes::named(names);
        let (found, note) = read(&classes, "10");
        assert_eq!(found, [2]);
        assert!(
            note.contains("taken as index:2 (10)")
                && note.contains("not as index:10, which is index:10 (8)"),
            "{note}"
        );
        assert_eq!(read(&classes, "index:10"), (vec![10], String::new()));
        assert_eq!(read(&classes, "0"), (vec![0], String::new()));
        assert_eq!(read(&classes, "10,index:10,11").0, [2, 10, 3]);
        // Numbers in .cls files are the indices themselves.
        let numbered = Classes::named((0..12).map(|n| n.to_string()));
        assert_eq!(read(&numbered, "10"), (vec![10], String::new()));
    }

    #[test]
    fn a_number_is_imagenets_where_all_classes_are_wnids() {
        let classes = Classes::named(["n01443537", "n01496331", "n02099601"]);
        assert_eq!(read(&classes, "207"), (vec![2], String::new()));
        assert_eq!(read(&classes, "n02099601").0, [2]);
        assert_eq!(read(&classes, "index:2"), (vec![2], String::new()));
        let (found, note) = read(&classes, "1");
        assert_eq!(found, [0]);
        assert!(
            note.contains("1 (n01443537: goldfish")
                && note.contains("index:1, which is 5 (n01496331"),
            "{note}"
        );
        let (text, code) = report(&classes.resolve_with_notes("2").unwrap_err());
        assert!(
            text.contains("ImageNet's class 2 (n01484850: great white shark"),
            "{text}"
        );
        assert!(text.contains("index:2 is 207 (n02099601"), "{text}");
        assert_eq!(code, 2);
        // If one class has another kind of name, numbers are indices.
        let mixed = Classes::named(["n01443537", "n01496331", "sofa"]);
        assert_eq!(read(&mixed, "2"), (vec![2], String::new()));
        assert!(mixed.resolve_with_notes("207").is_err());
    }

    #[test]
    fn an_exact_name_comes_before_one_in_another_case() {
        let classes = Classes::named(["Cat", "all", "cat", "index:0"]);
        assert_eq!(read(&classes, "cat").0, [2]);
        assert_eq!(read(&classes, "Cat").0, [0]);
        assert_eq!(read(&classes, "index:0").0, [3]);
        assert_eq!(read(&classes, "all").0, [1]);
        assert_eq!(read(&classes, "ALL").0, [0, 1, 2, 3]);
        let (text, _) = report(&classes.resolve_with_notes("CAT").unwrap_err());
        assert!(
            text.contains("ambiguous") && text.contains("index:0 (Cat)"),
            "{text}"
        );
    }

    #[test]
    fn the_nearest_names_come_from_all_synonyms() {
        let (text, _) = report(&Classes::imagenet().resolve("cramp fish").unwrap_err());
        assert!(
            text.contains("5 (n01496331: electric ray, crampfish"),
            "{text}"
        );
        let (text, _) = report(&Classes::imagenet().resolve("index:1000").unwrap_err());
        assert!(text.contains("0 to 999"), "{text}");
    }
}
