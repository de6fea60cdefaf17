//! A folder of drawn images: 000000.png, 000001.png, …, captions.json with the prompt of each, and what they were drawn
//! with, so that images of different settings are never mixed.
use super::evaluate::write_json;
use crate::model::weights::fingerprint::sha256;
use crate::system::error::{Error, Result};
use crate::system::limits::STATE;
use crate::system::paths::{exists, is_folder, may_be_file};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What the folder's images were drawn with.
const RECORD: &str = "generation.json";

/// An image's name without extension.
pub fn key(index: usize) -> String {
    format!("{index:06}")
}

/// Whether the folder's images were drawn from more prompts than these, which then stay as they are.
///
/// # Errors
/// They were drawn otherwise than these are to be, or nothing says how.
pub fn check(folder: &Path, wanted: &Value) -> Result<bool> {
    let file = folder.join(RECORD);
    let text = match STATE.read(&file) {
        Ok(text) => text,
        Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => {
            return match exists(&folder.join(format!("{}.png", key(0))))? {
                true => {
                    let problem =
                        format!("holds images, but no {RECORD} that says how they were drawn; name another folder");
                    Err(Error::file(folder, problem))
                }
                false => Ok(false),
            };
        }
        Err(problem) => return Err(Error::file(&file, problem)),
    };
    let found: Value = serde_json::from_slice(&text).map_err(|problem| Error::file(&file, problem))?;
    check_same(folder, &found, wanted)?;
    let prompts = |record: &Value| record["prompts"].as_array().map_or(0, Vec::len);
    Ok(prompts(&found) > prompts(wanted))
}

/// Writes down what the images are drawn with, `record`, and the prompt of each, as `evaluate clip-score` takes them.
pub fn describe<'a>(folder: &Path, record: &Value, prompts: impl Iterator<Item = &'a str>) -> Result<()> {
    let captions: Map<String, Value> = (0..).map(key).zip(prompts.map(|prompt| json!(prompt))).collect();
    write_json(&folder.join("captions.json"), &captions)?;
    write_json(&folder.join(RECORD), record)
}

/// A file by the SHA-256 of what it holds; a folder, such as PEFT's, by those of the files in it.
pub fn content(path: &Path) -> Result<String> {
    let failed = |problem: std::io::Error| Error::file(path, problem);
    let mut files = vec![path.to_owned()];
    if is_folder(path)? {
        let entries = std::fs::read_dir(path).map_err(failed)?;
        files = entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect::<Result<_>>()?;
        files.retain(|file| may_be_file(file));
        files.sort();
    }
    let sums = files.iter().map(|file| Ok(sha256(file)?.0)).collect::<Result<Vec<_>>>()?;
    Ok(sums.join(" "))
}

/// # Errors
/// The folder's images were drawn otherwise; more prompts than then are no difference.
fn check_same(folder: &Path, found: &Value, wanted: &Value) -> Result<()> {
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        let found = &found[key];
        let same = match (key.as_str(), found.as_array(), wanted.as_array()) {
            ("prompts", Some(found), Some(wanted)) => found.iter().zip(wanted).all(|(found, wanted)| found == wanted),
            _ => found == wanted,
        };
        if !same {
            let problem = format!(
                "its images were drawn with another {key} ({found}, now {wanted}); remove the folder, or name another"
            );
            return Err(Error::file(folder, problem));
        }
    }
    Ok(())
}
