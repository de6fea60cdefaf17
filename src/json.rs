//! JSON files, read whole: no longer than they may be, and no deeper than 128 levels (serde_json's limit).
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::limits::Limit;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads a JSON file into a type.
///
/// # Errors
/// Names file, key and place.
pub fn read_json<T: DeserializeOwned>(file: &Path, limit: Limit) -> Result<T> {
    let text = limit.read_text(file).map_err(|e| Error::file(file, e))?;
    guarded(|| serde_json::from_str(&text).map_err(|e| e.to_string())).map_err(|e: String| Error::file(file, e))
}
