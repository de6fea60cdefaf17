//! Pulls typed settings out of a document and gathers everything that is wrong with it.
use super::document::Document;
use super::problems::{Place, Problems, nearest};
use super::setting::Setting;
use crate::system::error::Result;
use std::collections::BTreeSet;

pub(super) struct Reader {
    document: Document,
    problems: Problems,
    /// Every key that was asked for: all others are unknown.
    known: Vec<&'static str>,
    /// Keys with a problem already reported, which checks across keys leave alone.
    bad: BTreeSet<&'static str>,
}

impl Reader {
    pub fn new(document: Document, problems: Problems) -> Self {
        Self { document, problems, known: Vec::new(), bad: BTreeSet::new() }
    }

    /// The setting `key`, where it is given.
    pub fn optional<T: Setting>(&mut self, key: &'static str) -> Option<T> {
        self.known.push(key);
        if let Some(place) = self.document.sections.get(key) {
            let message = format!("{key}: expected {}, found a section", T::expected());
            self.problems.add(place.clone(), message);
            self.bad.insert(key);
            return None;
        }
        let (place, value) = self.document.settings.get(key)?;
        match T::read(value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problems.add(place.clone(), format!("{key}: {message}"));
                self.bad.insert(key);
                None
            }
        }
    }

    pub fn get<T: Setting>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// As `get`, and the value must pass `check`, which says what is wrong with it.
    pub fn checked<T: Setting>(
        &mut self,
        key: &'static str,
        default: T,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> T {
        let value = self.get(key, default);
        if let Err(message) = check(&value) {
            self.problem(&[key], message);
        }
        value
    }

    /// A setting that has no default; `example` shows what belongs there.
    pub fn required<T: Setting + Default>(
        &mut self,
        key: &'static str,
        example: &str,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> T {
        match self.optional(key) {
            Some(value) => {
                if let Err(message) = check(&value) {
                    self.problem(&[key], message);
                }
                value
            }
            None => {
                if self.bad.insert(key) {
                    self.problems.add(Place::File, format!("{key} is missing; expected something like {example}"));
                }
                T::default()
            }
        }
    }

    /// Reports a problem with the first of `keys`, which follows from them all; it stands where the first of
    /// them that is given stands. Left out if one of them is known to be wrong by itself.
    pub fn problem(&mut self, keys: &[&'static str], message: impl std::fmt::Display) {
        if keys.iter().any(|key| self.bad.contains(key)) {
            return;
        }
        let place =
            keys.iter().find_map(|key| self.document.settings.get(*key)).map_or(Place::File, |(p, _)| p.clone());
        self.problems.add(place, format!("{}: {message}", keys[0]));
        self.bad.insert(keys[0]);
    }

    /// Whether the file or an override has this section.
    pub fn has_section(&self, name: &str) -> bool {
        self.document.sections.contains_key(name)
    }

    /// Whether the file or an override gives this key.
    pub fn given(&self, key: &str) -> bool {
        self.document.settings.contains_key(key)
    }

    /// Reports every key and section that nothing asked for, then all problems together.
    pub fn finish(mut self) -> Result<()> {
        let sections: BTreeSet<&str> = self.known.iter().filter_map(|k| k.rsplit_once('.')).map(|(s, _)| s).collect();
        let mut unknown_sections: Vec<&str> = Vec::new();
        for (name, place) in &self.document.sections {
            let within_unknown = unknown_sections.iter().any(|s| name.starts_with(&format!("{s}.")));
            if sections.contains(name.as_str()) || self.known.contains(&name.as_str()) || within_unknown {
                continue;
            }
            unknown_sections.push(name);
            let hint = nearest(name, sections.iter().copied()).unwrap_or_default();
            self.problems.add(place.clone(), format!("unknown section [{name}]; the nearest is [{hint}]"));
        }
        for (key, (place, value)) in &self.document.settings {
            let below = |section: &&str| key.starts_with(&format!("{section}."));
            // What stands below an unknown section, or below a key that is none, was reported with that.
            let reported = self.known.iter().chain(&unknown_sections).any(below);
            if reported || self.known.contains(&key.as_str()) {
                continue;
            }
            let message = if sections.contains(key.as_str()) {
                format!("{key}: expected a section [{key}], found {value}")
            } else {
                format!("unknown key {key}; the nearest is {}", self.nearest_key(key))
            };
            self.problems.add(place.clone(), message);
        }
        self.problems.into_result()
    }

    /// The key of the same name in another section, else the most alike of the same section, else of all.
    fn nearest_key(&self, key: &str) -> &'static str {
        fn split(key: &str) -> (&str, &str) {
            key.rsplit_once('.').unwrap_or(("", key))
        }
        let (section, name) = split(key);
        if let Some(same) = self.known.iter().find(|known| split(known).1 == name) {
            return same;
        }
        let siblings = self.known.iter().copied().filter(|known| split(known).0 == section);
        let alike = |known: &&str| strsim::normalized_damerau_levenshtein(name, split(known).1) >= 0.5;
        nearest(key, siblings.filter(alike)).or_else(|| nearest(key, self.known.iter().copied())).unwrap_or_default()
    }
}
