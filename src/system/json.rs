//! JSON files, read whole: no longer than they may be, and no deeper than 128 levels (serde_json's limit).
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits::Limit;
use crate::system::utf8;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads a JSON file into a type.
///
/// # Errors
/// Names file, key and place.
pub fn read_json<T: DeserializeOwned>(file: &Path, limit: Limit) -> Result<T> {
    parse_json(file, limit, |problem| Error::file(file, problem))
}

/// The same, with an error of its own where the file is read but is not what it should be.
///
/// # Errors
/// What the system says, or `wrong` of key and place.
pub fn parse_json<T: DeserializeOwned>(file: &Path, limit: Limit, wrong: impl Fn(String) -> Error) -> Result<T> {
    let bytes = limit.read(file).map_err(|e| Error::file(file, e))?;
    let text = utf8::text(bytes).map_err(|problem| Error::file(file, problem))?;
    guarded(|| serde_json::from_str(&text).map_err(|e| e.to_string())).map_err(wrong)
}
