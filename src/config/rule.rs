//! What a key's declaration says of it: its default, what it accepts, its documentation.
use super::document::{TomlValue, unexpected};
use super::setting::{Check, Setting};

/// What the declaration of a key says beside its name and type, as help shows it.
#[derive(Clone, Debug)]
pub struct KeyDoc {
    /// With its section, such as `lora.rank`.
    pub name: String,
    /// What it does, in sentences.
    pub doc: String,
    /// The values that it takes, as in "expected …".
    pub values: String,
    /// Names that it takes, as TOML, each with what it means.
    pub choices: Vec<(String, &'static str)>,
    /// What it is where it is not given.
    pub default: DefaultKind,
    /// As TOML: its value if it has one, else an example.
    pub value: String,
    /// Whether the file or an override gives it.
    pub given: bool,
}

/// What a key is where it is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultKind {
    /// An error.
    Required,
    /// The same value in every run.
    Value,
    /// What this key or sentence says.
    From(&'static str),
    /// Nothing.
    Absent,
}

/// A section and its keys, in the order of their declarations.
#[derive(Clone, Debug)]
pub struct SectionDoc {
    /// Empty for the keys above all sections.
    pub name: &'static str,
    /// What it is for, in sentences.
    pub doc: String,
    /// Whether this is an optional section that is not there.
    pub absent: bool,
    /// Its keys.
    pub keys: Vec<KeyDoc>,
}

/// How a key is read: its default, and what it accepts.
pub(super) struct Rule<T> {
    pub default: T,
    pub kind: DefaultKind,
    /// Shown where there is no value, as TOML.
    pub example: &'static str,
    pub check: Option<Check<T>>,
    pub expected: fn() -> String,
    pub read: fn(&TomlValue) -> Result<T, String>,
}

impl<T: Setting> Rule<T> {
    fn new(kind: DefaultKind, default: T, example: &'static str) -> Self {
        Self { default, kind, example, check: None, expected: T::expected, read: T::read }
    }
}

impl<T> Rule<T> {
    /// The value must pass this check.
    pub fn checked(self, check: Check<T>) -> Self {
        Self { check: Some(check), ..self }
    }
}

impl Rule<Vec<usize>> {
    /// The value is indices of blocks, which are put in ascending order; one alone needs no list.
    pub fn of_blocks(self) -> Self {
        const EXPECTED: &str = "a block index (from 0) or a list of them";
        let read = |value: &TomlValue| {
            let one = usize::convert(value).map(|block| vec![block]);
            let blocks = one.or_else(|| Vec::convert(value));
            let mut blocks = blocks.ok_or_else(|| unexpected(value, EXPECTED))?;
            blocks.sort_unstable();
            Ok(blocks)
        };
        Self { expected: || EXPECTED.into(), read, ..self }
    }
}

/// A key with this default.
pub(super) fn usual<T: Setting>(default: T) -> Rule<T> {
    Rule::new(DefaultKind::Value, default, "")
}

/// A key whose default follows from others; `from` is the key, or says in words how.
pub(super) fn follows<T: Setting>(from: &'static str, default: T) -> Rule<T> {
    Rule::new(DefaultKind::From(from), default, "")
}

/// A key without a default; `example` is TOML.
pub(super) fn required<T: Setting + Default>(example: &'static str) -> Rule<T> {
    Rule::new(DefaultKind::Required, T::default(), example)
}

/// A key that may be left out; `example` is TOML.
pub(super) fn optional<T: Setting>(example: &'static str) -> Rule<Option<T>> {
    Rule::new(DefaultKind::Absent, None, example)
}
