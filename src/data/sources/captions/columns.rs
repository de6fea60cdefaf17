//! What the readers of all forms of captions share: which columns they read, and whom they give the captions to.
use crate::config::DataConfig;
use std::path::Path;

/// Which columns (keys of JSON records) hold an image's key and its caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns<'a> {
    /// Column of the image key.
    pub key: &'a str,
    /// Column of the caption.
    pub caption: &'a str,
}

impl<'a> Columns<'a> {
    /// The columns where none are named.
    pub const USUAL: Columns<'static> = Columns { key: "key", caption: "caption" };

    /// The columns of `data.caption_key_column` and `data.caption_column`.
    pub fn of(config: &'a DataConfig) -> Self {
        Self { key: &config.caption_key_column, caption: &config.caption_column }
    }

    /// These, or where none are named those of Hugging Face's image folders if `path` is their `metadata` file.
    pub(super) fn in_file(self, path: &Path) -> Self {
        let is_metadata = path.file_stem().is_some_and(|stem| stem.eq_ignore_ascii_case("metadata"));
        let other = |named, usual, of_metadata| if is_metadata && named == usual { of_metadata } else { named };
        Self {
            key: other(self.key, Columns::USUAL.key, "file_name"),
            caption: other(self.caption, Columns::USUAL.caption, "text"),
        }
    }
}

/// Receives a key and its caption.
pub type Insert<'a> = dyn FnMut(&str, &str) -> Result<(), String> + 'a;
