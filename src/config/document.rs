//! A TOML file and the `--set` overrides as one flat list of settings, each knowing where it stands.
use super::problems::{Problems, SettingOrigin};
use crate::system::guard::guarded;
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;
pub(super) use toml::Value as TomlValue;
use toml::de::{DeTable, DeValue};

/// That a value is not what was expected.
pub(super) fn unexpected(value: &TomlValue, expected: &str) -> String {
    let found = match value {
        TomlValue::Boolean(value) => value.to_string(),
        TomlValue::Integer(value) => format!("the integer {value}"),
        TomlValue::Float(value) => format!("the number {value:?}"),
        TomlValue::String(value) => format!("the string {value:?}"),
        TomlValue::Datetime(value) => format!("the date {value}"),
        TomlValue::Array(values) if values.is_empty() => "an empty list".into(),
        TomlValue::Array(values) => format!("a list of {} items", values.len()),
        TomlValue::Table(_) => "a table".into(),
    };
    format!("expected {expected}, found {found}")
}

/// The cure for backslashes that TOML takes for the start of something else.
pub(super) const WINDOWS_PATHS: &str =
    "in double quotes a backslash begins an escape: write Windows paths in single quotes, as in 'C:\\data'";

/// Former names of settings, which older configs and checkpoints have, and the names of today.
const RENAMED: [(&str, &str); 1] = [("model.expert_layer", "model.expert_layers")];

/// Settings by dotted key (`lora.rank`) and sections by name.
#[derive(Default)]
pub(super) struct Document {
    pub settings: BTreeMap<String, (SettingOrigin, TomlValue)>,
    pub sections: BTreeMap<String, SettingOrigin>,
}

impl Document {
    /// Parses the text of `file`; syntax errors, all of them, go to `problems`.
    pub fn parse(text: &str, problems: &mut Problems) -> Self {
        let (root, errors) = match guarded(|| Ok::<_, String>(DeTable::parse_recoverable(text))) {
            Ok(parsed) => parsed,
            Err(problem) => {
                problems.add(SettingOrigin::File, format!("TOML syntax: {problem}"));
                return Self::default();
            }
        };
        for error in errors {
            let place = SettingOrigin::in_text(text, error.span().map_or(0, |span| span.start));
            let message = error.message().replace('\n', " ");
            let hint = if message.contains("escape") { format!("; {WINDOWS_PATHS}") } else { String::new() };
            problems.add(place, format!("TOML syntax: {message}{hint}"));
        }
        let mut document = Self::default();
        for (key, value) in root.get_ref() {
            let place = |start| SettingOrigin::in_text(text, start);
            document.insert(path("", key.get_ref()), value, key.span().start, &place, problems);
        }
        document
    }

    /// Puts `KEY=VALUE` over what the file says. VALUE is TOML; a bare word is taken as a string.
    pub fn set(&mut self, text: &str, problems: &mut Problems) {
        let place = SettingOrigin::Set(text.to_string());
        let Some((key, value)) = text.split_once('=') else {
            return problems.add(place, "expected KEY=VALUE, such as train.steps=100");
        };
        let (key, value) = (key.trim(), value.trim());
        let is_bare =
            |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !key.split('.').all(is_bare) {
            return problems.add(place, format!("{key:?} is not a key; expected one such as train.steps"));
        }
        for (end, _) in key.match_indices('.') {
            self.sections.entry(key[..end].to_string()).or_insert(place.clone());
        }
        let at = |_| place.clone();
        let line = format!("value = {value}");
        match DeTable::parse(&line).map(|table| table.into_inner()) {
            Ok(table) => match table.get("value").filter(|_| table.len() == 1) {
                // A date is more likely a name: no setting takes a date.
                Some(parsed) if !parsed.get_ref().is_datetime() => {
                    self.insert(key.to_string(), parsed, 0, &at, problems)
                }
                _ => self.put(key, place, TomlValue::String(value.to_string())),
            },
            Err(error) if value.starts_with(['[', '{', '"', '\'']) => {
                problems.add(place, format!("TOML syntax: {}", error.message().replace('\n', " ")))
            }
            Err(_) => self.put(key, place, TomlValue::String(value.to_string())),
        }
    }

    /// A setting goes over one of the same name, and of its former name.
    fn put(&mut self, key: &str, place: SettingOrigin, value: TomlValue) {
        let key = RENAMED.iter().find(|(old, _)| *old == key).map_or(key, |(_, new)| new);
        self.settings.insert(key.to_string(), (place, value));
    }

    /// Adds a value, and what is in it where it is a section. `place` turns a byte offset into a place.
    fn insert(
        &mut self,
        key: String,
        value: &Spanned<DeValue<'_>>,
        start: usize,
        place: &dyn Fn(usize) -> SettingOrigin,
        problems: &mut Problems,
    ) {
        match value.get_ref() {
            DeValue::Table(table) => {
                for (name, inner) in table {
                    self.insert(path(&key, name.get_ref()), inner, name.span().start, place, problems);
                }
                self.sections.insert(key, place(start));
            }
            leaf => match convert(leaf) {
                Ok(value) => self.put(&key, place(start), value),
                Err(problem) => problems.add(place(start), format!("{key}: {problem}")),
            },
        }
    }
}

/// `section.key`; a key that is not a bare word is quoted, so that `"lora.rank"` is not taken for `lora.rank`.
fn path(section: &str, key: &str) -> String {
    let quoted = if key.is_empty() || key.contains(['.', ' ', '"']) { format!("{key:?}") } else { key.to_string() };
    if section.is_empty() { quoted } else { format!("{section}.{quoted}") }
}

fn convert(value: &DeValue<'_>) -> Result<TomlValue, String> {
    Ok(match value {
        DeValue::String(text) => TomlValue::String(text.to_string()),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(integer) => TomlValue::Integer(integer),
            Err(_) => return Err(format!("the integer {digits} is too large")),
        },
        DeValue::Float(digits) => match digits.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => TomlValue::Float(number),
            _ => return Err(format!("{digits} is not a finite number")),
        },
        DeValue::Boolean(truth) => TomlValue::Boolean(*truth),
        DeValue::Datetime(date) => TomlValue::Datetime(*date),
        DeValue::Array(values) => {
            TomlValue::Array(values.iter().map(|value| convert(value.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let mut entries = toml::Table::new();
            for (key, value) in table {
                entries.insert(path("", key.get_ref()), convert(value.get_ref())?);
            }
            TomlValue::Table(entries)
        }
    })
}

/// Reads a text file; anything that keeps it from being read is a usage error that names it.
pub(super) fn read_text(file: &Path) -> crate::Result<String> {
    let usage = |problem: String| crate::Error::Usage(format!("{}: {problem}", file.display()));
    let bytes = crate::system::limits::CONFIG.read(file).map_err(|e| usage(format!("cannot read the config: {e}")))?;
    String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        usage(format!("line {line} is not UTF-8 text"))
    })
}
