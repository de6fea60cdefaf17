//! Pulls typed settings out of a document and gathers everything that is wrong with it.
use super::document::{Document, unexpected};
use super::problems::{Problems, SettingOrigin, nearest};
use super::rule::{DefaultKind, KeyDoc, Rule, SectionDoc};
use super::setting::Setting;
use crate::system::error::Result;
use std::collections::BTreeSet;

pub(super) struct Reader {
    document: Document,
    problems: Problems,
    /// Every section and key that was read: all others are unknown.
    sections: Vec<SectionDoc>,
    /// Keys with a problem already reported, which checks across keys leave alone.
    bad: BTreeSet<String>,
    /// Whether the section being read is an optional one that is not there: its keys become known, and no more.
    absent: bool,
}

impl Reader {
    pub fn new(document: Document, problems: Problems) -> Self {
        Self { document, problems, sections: Vec::new(), bad: BTreeSet::new(), absent: false }
    }

    /// The keys read from now on are of this section.
    pub fn begin_section(&mut self, name: &'static str, doc: &[&str]) {
        self.sections.push(SectionDoc { name, doc: paragraph(doc), absent: self.absent, keys: Vec::new() });
    }

    /// What `read` makes of the section `name`, if that is there.
    pub fn optional_section<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.absent = !self.document.sections.contains_key(name);
        let section = read(self);
        let present = !std::mem::take(&mut self.absent);
        present.then_some(section)
    }

    /// The value of `key` in the current section: the default where it is not given or wrong.
    pub fn read<T: Setting>(&mut self, key: &str, doc: &[&str], rule: Rule<T>) -> T {
        let section = self.sections.last().map_or("", |section| section.name);
        let name = if section.is_empty() { key.to_string() } else { format!("{section}.{key}") };
        let given = self.given(&name);
        let read = self.given_value(&name, &rule);
        if rule.kind == DefaultKind::Required && read.is_none() && !self.absent && self.bad.insert(name.clone()) {
            let message = format!("{name} is missing; expected something like {}", rule.example);
            self.problems.add(SettingOrigin::File, message);
        }
        let value = read.unwrap_or(rule.default);
        if let Some(Err(problem)) = rule.check.as_ref().map(|check| (check.test)(&value)) {
            match rule.kind {
                // What the default is taken from is wrong, or does not suit this key.
                DefaultKind::From(source) if !given => self.problem(&[&name, source], problem),
                _ => self.problem(&[&name], problem),
            }
        }
        let mut values = (rule.expected)();
        if let Some(check) = &rule.check {
            values = format!("{}, {}", values.trim_end_matches(", 0 or more"), check.text);
        }
        let has_value = given || matches!(rule.kind, DefaultKind::Value | DefaultKind::From(_));
        let value_text = has_value.then(|| toml::Value::try_from(&value).ok()).flatten().map(|value| match value {
            // 1e-8, where toml writes all the zeros.
            toml::Value::Float(number) => format!("{number:?}"),
            value => value.to_string(),
        });
        let key = KeyDoc {
            doc: paragraph(doc),
            values,
            choices: T::choices(),
            default: rule.kind,
            value: value_text.unwrap_or_else(|| rule.example.to_string()),
            given,
            name,
        };
        self.sections.last_mut().expect("keys are read within a section").keys.push(key);
        value
    }

    /// The value of the key `name`, where it is given and of the right type.
    fn given_value<T>(&mut self, name: &str, rule: &Rule<T>) -> Option<T> {
        let (place, problem) = if let Some(place) = self.document.sections.get(name) {
            (place, format!("expected {}, found a section", (rule.expected)()))
        } else {
            let (place, value) = self.document.settings.get(name)?;
            match (rule.read)(value) {
                Ok(value) => return Some(value),
                Err(problem) => (place, problem),
            }
        };
        self.problems.add(place.clone(), format!("{name}: {problem}"));
        self.bad.insert(name.to_string());
        None
    }

    /// Reports a problem with the first of `keys`, which follows from them all; it stands where the first of
    /// them that is given stands. Left out if one of them is known to be wrong by itself.
    pub fn problem(&mut self, keys: &[&str], message: impl std::fmt::Display) {
        if self.absent || keys.iter().any(|key| self.bad.contains(*key)) {
            return;
        }
        let place = keys
            .iter()
            .find_map(|key| self.document.settings.get(*key))
            .map_or(SettingOrigin::File, |(p, _)| p.clone());
        self.problems.add(place, format!("{}: {message}", keys[0]));
        self.bad.insert(keys[0].to_string());
    }

    /// Whether the file or an override gives this key.
    pub fn given(&self, key: &str) -> bool {
        self.document.settings.contains_key(key)
    }

    /// The sections that were read so far.
    pub fn sections(&self) -> &[SectionDoc] {
        &self.sections
    }

    /// Reports every key and section that nothing asked for, then all problems together; else all sections that were
    /// read.
    pub fn finish(mut self) -> Result<Vec<SectionDoc>> {
        let known: Vec<&str> = self.sections.iter().flat_map(|s| &s.keys).map(|key| key.name.as_str()).collect();
        let sections: BTreeSet<&str> = self.sections.iter().map(|s| s.name).filter(|name| !name.is_empty()).collect();
        let mut unknown_sections: Vec<&str> = Vec::new();
        for (name, place) in &self.document.sections {
            let within_unknown = unknown_sections.iter().any(|s| name.starts_with(&format!("{s}.")));
            if sections.contains(name.as_str()) || known.contains(&name.as_str()) || within_unknown {
                continue;
            }
            unknown_sections.push(name);
            let hint = nearest(name, sections.iter().copied()).unwrap_or_default();
            self.problems.add(place.clone(), format!("unknown section [{name}]; the nearest is [{hint}]"));
        }
        for (key, (place, value)) in &self.document.settings {
            let below = |section: &&str| key.starts_with(&format!("{section}."));
            // What stands below an unknown section, or below a key that is none, was reported with that.
            let reported = known.iter().chain(&unknown_sections).any(below);
            if reported || known.contains(&key.as_str()) {
                continue;
            }
            let message = if sections.contains(key.as_str()) {
                format!("{key}: {}", unexpected(value, &format!("a section [{key}]")))
            } else {
                format!("unknown key {key}; the nearest is {}", nearest_key(key, &known))
            };
            self.problems.add(place.clone(), message);
        }
        self.problems.into_result()?;
        Ok(self.sections)
    }
}

/// The key of the same name in another section, else the most alike of the same section, else of all.
pub(super) fn nearest_key<'a>(key: &str, known: &[&'a str]) -> &'a str {
    fn split(key: &str) -> (&str, &str) {
        key.rsplit_once('.').unwrap_or(("", key))
    }
    let (section, name) = split(key);
    if let Some(same) = known.iter().find(|known| split(known).1 == name) {
        return same;
    }
    let siblings = known.iter().copied().filter(|known| split(known).0 == section);
    let alike = |known: &&str| strsim::normalized_damerau_levenshtein(name, split(known).1) >= 0.5;
    nearest(key, siblings.filter(alike)).or_else(|| nearest(key, known.iter().copied())).unwrap_or_default()
}

/// The lines of a doc comment as one.
fn paragraph(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}
