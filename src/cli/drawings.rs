//! A folder of drawn images: 000000.png, 000001.png, …, captions.json with their prompts, and a record of the settings,
//! so that images of different settings are never mixed.
use super::evaluate::write_json;
use crate::model::adapters::weighted::WeightedFile;
use crate::model::weights::fingerprint::sha256;
use crate::system::error::{Error, Result};
use crate::system::limits::STATE;
use crate::system::paths::{exists, is_folder, may_be_file};
use crate::system::whole_file::entries;
use serde_json::{Map, Value, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The file that records the settings.
const RECORD: &str = "generation.json";

/// An image's name without extension.
fn key(index: usize) -> String {
    format!("{index:06}")
}

/// An image's file.
pub fn image_file(folder: &Path, index: usize) -> PathBuf {
    folder.join(key(index) + ".png")
}

/// Identifies the LoRAs that images were drawn with: one of the weight 1 by its content, others with their weights.
pub fn lora_content(files: &[WeightedFile]) -> Result<Value> {
    match files {
        [] => Ok(Value::Null),
        [WeightedFile { path, weight: 1.0 }] => Ok(content(path)?.into()),
        files => files.iter().map(|file| Ok(json!([content(&file.path)?, file.weight]))).collect(),
    }
}

/// Whether the folder has images of more prompts than these; the additional ones stay.
///
/// # Errors
/// The images were drawn with other settings, or there is no record of them.
pub fn check(folder: &Path, wanted: &Value) -> Result<bool> {
    let file = folder.join(RECORD);
    let text = match STATE.read(&file) {
        Err(problem) if problem.kind() == ErrorKind::NotFound => {
            let problem = format!("holds images, but no {RECORD} that says how they were drawn; name another folder");
            return if exists(&image_file(folder, 0))? { Err(Error::file(folder, problem)) } else { Ok(false) };
        }
        text => text.map_err(|problem| Error::file(&file, problem))?,
    };
    let found: Value = serde_json::from_slice(&text).map_err(|problem| Error::file(&file, problem))?;
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        let found = &found[key];
        let is_same = match (key.as_str(), found.as_array(), wanted.as_array()) {
            ("prompts", Some(found), Some(wanted)) => found.iter().zip(wanted).all(|(found, wanted)| found == wanted),
            _ => found == wanted,
        };
        if !is_same {
            let problem = format!("its images were drawn with another {key} ({found}, now {wanted})");
            return Err(Error::file(folder, problem + "; remove the folder, or name another"));
        }
    }
    let prompts = |record: &Value| record["prompts"].as_array().map_or(0, Vec::len);
    Ok(prompts(&found) > prompts(wanted))
}

/// Writes the settings `record`, and the prompt of each image in the form that `evaluate clip-score` reads.
pub fn describe(folder: &Path, record: &Value) -> Result<()> {
    let prompts = record["prompts"].as_array().into_iter().flatten().cloned();
    let captions: Map<String, Value> = (0..).map(key).zip(prompts).collect();
    write_json(&folder.join("captions.json"), &captions)?;
    write_json(&folder.join(RECORD), record)
}

/// Identifies a file by the SHA-256 of its content, and a folder, such as PEFT's, by those of its files.
pub fn content(path: &Path) -> Result<String> {
    let mut files = vec![path.to_owned()];
    if is_folder(path)? {
        files = entries(path)?;
        files.retain(|file| may_be_file(file));
        files.sort();
    }
    let sums = files.iter().map(|file| Ok(sha256(file)?.0)).collect::<Result<Vec<_>>>()?;
    Ok(sums.join(" "))
}
