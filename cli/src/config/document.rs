//! The configuration file as a tree in which everything knows its place in the text.
//!
//! Reading a part of it goes on after a mistake: what is wrong is noted, taken out of a copy of the part, and the rest is
//! read again, until nothing wrong is left. So all mistakes are found at once, with serde's own types as the only
//! description of what is right.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeTable, DeValue, ValueDeserializer};

use super::finding::{Finding, Place, from_serde, missing_field};

/// A part of the file.
pub(crate) type Part<'t> = Spanned<DeValue<'t>>;

/// After so many mistakes in one part the rest of it can wait.
const MOST_TURNS: usize = 500;

/// The span of what was filled in for a missing field; nothing in a file has it.
const FILLED: Range<usize> = usize::MAX - 1..usize::MAX;

/// The file, parsed.
pub(crate) struct Document<'t> {
    text: &'t str,
    root: Part<'t>,
}

impl<'t> Document<'t> {
    /// Parses a file's text; all errors of syntax at once.
    pub(crate) fn parse(text: &'t str) -> Result<Self, Vec<Finding>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let found = errors.into_iter().map(|error| {
                // What the parser gives up on as a whole has no span.
                let place = Place::of(text, error.span().map_or(0, |span| span.start));
                Finding::error(format!("this is not TOML: {}", error.message())).at(Some(place))
            });
            return Err(found.collect());
        }
        let span = root.span();
        Ok(Self { text, root: Spanned::new(span, DeValue::Table(root.into_inner())) })
    }

    /// The part at a path, if there is one. Steps into arrays are numbers.
    pub(crate) fn part(&self, path: &[&str]) -> Option<&Part<'t>> {
        path.iter().try_fold(&self.root, |part, step| child(part, step).map(|(_, value)| value))
    }

    /// The names in the table at a path.
    pub(crate) fn names(&self, path: &[&str]) -> Vec<String> {
        let table = self.part(path).and_then(|part| part.get_ref().as_table());
        table.into_iter().flat_map(DeTable::keys).map(|key| key.get_ref().to_string()).collect()
    }

    /// How many items the array at a path has.
    pub(crate) fn length(&self, path: &[&str]) -> usize {
        self.part(path).and_then(|part| part.get_ref().as_array()).map_or(0, |items| items.len())
    }

    /// Reads the part at a path, and notes all that is wrong in it. None where it is absent or cannot be read.
    pub(crate) fn read<T: DeserializeOwned>(&self, path: &[&str], findings: &mut Vec<Finding>) -> Option<T> {
        let mut part = self.part(path)?.clone();
        let mut missing: Option<Missing> = None;
        let before = findings.len();
        for _ in 0..MOST_TURNS {
            let error = match T::deserialize(ValueDeserializer::from(part.clone())) {
                Ok(read) => return (findings.len() == before).then_some(read),
                Err(error) => error,
            };
            let span = error.span().unwrap_or(part.span());
            if span == FILLED {
                missing = match missing?.next(&mut part) {
                    Ok(next) => Some(next),
                    // What is wrong in that table was found before, and its neighbours are still to be read.
                    Err(hopeless) if take_out(part.get_mut(), &hopeless.table) => None,
                    Err(_) => return None,
                };
                continue;
            }
            if let Some(key) = missing_field(error.message()) {
                if !self.was_there(&span, key) {
                    findings.push(self.finding(&error, &span, path));
                }
                missing = Some(Missing::fill(&mut part, span, key.to_owned())?);
                continue;
            }
            findings.push(self.finding(&error, &span, path));
            if !take_out(part.get_mut(), &span) {
                return None;
            }
        }
        None
    }

    /// The paths of all texts that hold the given one.
    pub(crate) fn texts_with(&self, wanted: &str) -> Vec<Vec<String>> {
        fn collect(part: &Part<'_>, wanted: &str, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
            let mut below = |step: String, part: &Part<'_>| {
                path.push(step);
                collect(part, wanted, path, found);
                path.pop();
            };
            match part.get_ref() {
                DeValue::String(text) if text.contains(wanted) => found.push(path.clone()),
                DeValue::Table(table) => table.iter().for_each(|(key, part)| below(key.get_ref().to_string(), part)),
                DeValue::Array(items) => {
                    items.iter().enumerate().for_each(|(index, part)| below(index.to_string(), part));
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        collect(&self.root, wanted, &mut Vec::new(), &mut found);
        found
    }

    /// Where the part at a path begins, or the last part on the way to it that exists.
    pub(crate) fn place(&self, path: &[String]) -> Option<Place> {
        let (mut here, mut place) = (&self.root, None);
        for step in path {
            let Some((key, value)) = child(here, step) else { break };
            place = Some(match value.get_ref() {
                // A table's value begins nowhere in particular: its key is what a person looks for.
                DeValue::Table(_) => key.unwrap_or(value.span()),
                _ => value.span(),
            });
            here = value;
        }
        place.map(|span| Place::of(self.text, span.start))
    }

    /// Where the key at a path stands.
    pub(crate) fn key_place(&self, path: &[&str]) -> Option<Place> {
        let (last, parents) = path.split_last()?;
        let (key, _) = child(self.part(parents)?, last)?;
        key.map(|span| Place::of(self.text, span.start))
    }

    fn finding(&self, error: &toml::de::Error, span: &Range<usize>, path: &[&str]) -> Finding {
        let mut full: Vec<String> = path.iter().map(|step| (*step).to_owned()).collect();
        full.extend(self.part(path).and_then(|part| path_to(part.get_ref(), span)).unwrap_or_default());
        let start = if *span == self.root.span() { None } else { Some(span.start) };
        let key = self.part(path).filter(|part| part.span() == *span).and_then(|_| self.key_place(path));
        let place = key.or_else(|| start.map(|start| Place::of(self.text, start)));
        Finding { path: full, ..from_serde(error.message()) }.at(place)
    }

    /// Whether the table with that span has that key in the file: it was taken out for being wrong, and is not missing.
    fn was_there(&self, span: &Range<usize>, key: &str) -> bool {
        fn look(part: &Part<'_>, span: &Range<usize>, key: &str) -> bool {
            match part.get_ref() {
                DeValue::Table(table) => {
                    (part.span() == *span && table.contains_key(key))
                        || table.values().any(|value| look(value, span, key))
                }
                DeValue::Array(items) => items.iter().any(|item| look(item, span, key)),
                _ => false,
            }
        }
        look(&self.root, span, key)
    }
}

fn child<'a, 't>(part: &'a Part<'t>, step: &str) -> Option<(Option<Range<usize>>, &'a Part<'t>)> {
    match part.get_ref() {
        DeValue::Table(table) => table.get_key_value(step).map(|(key, value)| (Some(key.span()), value)),
        DeValue::Array(items) => items.get(step.parse::<usize>().ok()?).map(|item| (None, item)),
        _ => None,
    }
}

/// The path below a value to the key or value with that span; of several, the innermost: a table that is only there
/// because of the name of another has that one's span.
fn path_to(value: &DeValue<'_>, span: &Range<usize>) -> Option<Vec<String>> {
    let below = |step: String, here: bool, part: &Part<'_>| match path_to(part.get_ref(), span) {
        Some(mut path) => {
            path.insert(0, step);
            Some(path)
        }
        None => here.then(|| vec![step]),
    };
    match value {
        DeValue::Table(table) => table.iter().find_map(|(key, part)| {
            below(key.get_ref().to_string(), key.span() == *span || part.span() == *span, part)
        }),
        DeValue::Array(items) => {
            items.iter().enumerate().find_map(|(index, part)| below(index.to_string(), part.span() == *span, part))
        }
        _ => None,
    }
}

/// Takes out the key or value with that span, the innermost; false where there is none.
fn take_out(value: &mut DeValue<'_>, span: &Range<usize>) -> bool {
    match value {
        DeValue::Table(table) => {
            if table.iter_mut().any(|(_, part)| take_out(part.get_mut(), span)) {
                return true;
            }
            let before = table.len();
            *table = std::mem::take(table)
                .into_iter()
                .filter(|(key, part)| key.span() != *span && part.span() != *span)
                .collect();
            table.len() < before
        }
        DeValue::Array(items) => {
            if items.iter_mut().any(|part| take_out(part.get_mut(), span)) {
                return true;
            }
            let before = items.len();
            *items = items.iter().filter(|part| part.span() != *span).cloned().collect();
            items.len() < before
        }
        _ => false,
    }
}

/// A field that is missing, filled in with one value after the other until one fits: to see what else is wrong.
struct Missing {
    table: Range<usize>,
    key: String,
    filling: usize,
}

impl Missing {
    fn fill(part: &mut Part<'_>, table: Range<usize>, key: String) -> Option<Self> {
        let missing = Self { table, key, filling: 0 };
        missing.put(part).then_some(missing)
    }

    /// Tries the next value; itself where there is none left.
    fn next(self, part: &mut Part<'_>) -> Result<Self, Self> {
        let next = Self { filling: self.filling + 1, ..self };
        if next.put(part) { Ok(next) } else { Err(next) }
    }

    fn put(&self, part: &mut Part<'_>) -> bool {
        let filling = match self.filling {
            0 => DeValue::String("".into()),
            1 => DeValue::Array(DeArray::default()),
            2 => DeValue::Table(DeTable::new()),
            3 => DeValue::Integer(DeInteger::default()),
            4 => DeValue::Boolean(true),
            _ => return false,
        };
        let Some(table) = table_with(part, &self.table) else { return false };
        // Taken out first: putting in a key that is there keeps the old key, with its place.
        table.remove(self.key.as_str());
        table.insert(Spanned::new(FILLED, self.key.clone().into()), Spanned::new(FILLED, filling));
        true
    }
}

/// The innermost table with that span.
fn table_with<'a, 't>(part: &'a mut Part<'t>, span: &Range<usize>) -> Option<&'a mut DeTable<'t>> {
    let here = part.span() == *span;
    match part.get_mut() {
        DeValue::Table(table) => {
            let within =
                table.iter().find(|(_, value)| holds_table(value, span)).map(|(key, _)| key.get_ref().to_string());
            match within {
                Some(key) => table_with(table.get_mut(key.as_str())?, span),
                None => here.then_some(table),
            }
        }
        DeValue::Array(items) => items.iter_mut().find_map(|item| table_with(item, span)),
        _ => None,
    }
}

fn holds_table(part: &Part<'_>, span: &Range<usize>) -> bool {
    match part.get_ref() {
        DeValue::Table(table) => part.span() == *span || table.values().any(|value| holds_table(value, span)),
        DeValue::Array(items) => items.iter().any(|item| holds_table(item, span)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct House {
        rooms: BTreeMap<String, Room>,
        floors: u8,
        name: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Room {
        size: u32,
        windows: Vec<String>,
        door: Door,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Door {
        Open,
        Shut,
    }

    fn findings(text: &str) -> Vec<String> {
        let document = Document::parse(text).unwrap();
        let mut findings = Vec::new();
        let read = document.read::<House>(&["house"], &mut findings);
        assert_eq!(read.is_some(), findings.is_empty(), "{findings:?}");
        findings.sort_by_key(|finding| finding.place);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_right_is_read() {
        let text = "[house]\nfloors = 2\nname = 'x'\n[house.rooms.hall]\nsize = 1\nwindows = []\ndoor = 'open'\n";
        assert_eq!(findings(text), [""; 0]);
    }

    #[test]
    fn all_mistakes_are_found_at_once_each_at_its_place() {
        let text = "\
[house]
flors = 2
[house.rooms.hall]
size = 'big'
windows = ['a', 3]
door = 'opn'
[house.rooms.cellar]
size = 1
wndows = []
door = 7
";
        assert_eq!(
            findings(text),
            [
                "1:2: error: house: `floors` is missing",
                "1:2: error: house: `name` is missing",
                "2:1: error: house.flors: there is no key named `flors` (did you mean `floors`?)",
                "4:8: error: house.rooms.hall.size: invalid type: a string, expected a whole number",
                "5:17: error: house.rooms.hall.windows.1: invalid type: integer `3`, expected a string",
                "6:8: error: house.rooms.hall.door: `opn` is not one of the values it may have (did you mean `open`?)",
                "7:1: error: house.rooms.cellar: `windows` is missing",
                "9:1: error: house.rooms.cellar.wndows: there is no key named `wndows` (did you mean `windows`?)",
                "10:8: error: house.rooms.cellar.door: invalid type: expected a string",
            ]
        );
    }

    #[test]
    fn all_errors_of_syntax_are_found_at_once() {
        let found = Document::parse("a = \nb = 1\n[c\n").err().unwrap();
        let mut places: Vec<u32> = found.iter().filter_map(|finding| Some(finding.place?.line)).collect();
        places.sort_unstable();
        assert_eq!(places, [1, 3], "{found:?}");
    }

    #[test]
    fn a_secret_of_the_wrong_type_is_not_shown() {
        let text = "[house]\nfloors = 'hunter2'\nname = 'x'\nrooms = {}\n";
        assert!(!findings(text)[0].contains("hunter2"));
    }
}
