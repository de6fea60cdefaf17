//! What is wrong with a configuration: every problem with its place, reported together.
use crate::system::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Where a setting comes from; ordered as problems are reported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SettingOrigin {
    /// 1-based line and column (in characters) of the config file.
    Text { line: usize, column: usize },
    /// The config file, nowhere in particular: something is missing.
    File,
    /// `--set` with this argument.
    Set(String),
}

impl SettingOrigin {
    /// The place of a byte offset into `text`.
    pub fn in_text(text: &str, offset: usize) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        Self::Text {
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            // Bytes that start a character, not those that go on with one.
            column: 1 + before[line_start..].iter().filter(|b| (**b & 0xC0) != 0x80).count(),
        }
    }
}

/// The problems of one file and its overrides.
pub(super) struct Problems {
    file: PathBuf,
    list: Vec<(SettingOrigin, String)>,
}

impl Problems {
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_path_buf(), list: Vec::new() }
    }

    pub fn add(&mut self, place: SettingOrigin, message: impl Into<String>) {
        self.list.push((place, message.into()));
    }

    /// One usage error with a line a problem, in the order of the file; nothing if there is none.
    pub fn into_result(mut self) -> Result<()> {
        if self.list.is_empty() {
            return Ok(());
        }
        self.list.sort();
        let file = self.file.display();
        let line = |(place, message): &(SettingOrigin, String)| match place {
            SettingOrigin::Text { line, column } => format!("{file}:{line}:{column}: {message}"),
            SettingOrigin::File => format!("{file}: {message}"),
            SettingOrigin::Set(text) => format!("--set {text}: {message}"),
        };
        Err(Error::Usage(self.list.iter().map(line).collect::<Vec<_>>().join("\n")))
    }
}

/// The candidate most like `word`, for "the nearest is …".
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &str| strsim::normalized_damerau_levenshtein(word, candidate);
    candidates.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}
