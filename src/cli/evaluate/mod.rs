//! `evaluate`: measures a model, with or without a LoRA.
pub(crate) mod clip_score;
pub(crate) mod fid;
pub(crate) mod generation;
mod predictions;
pub(crate) mod probe_settings;
pub(crate) mod referring;
pub(crate) mod segmentation;
pub(crate) mod unsupervised;

use crate::cli::say;
use crate::distributed::Collective;
use crate::eval::generation::GenerationScores;
use crate::system::error::{Error, Result};
use crate::system::whole_file::{check_writable, write_atomically};
use std::path::{Path, PathBuf};

/// The file for the scores at rank 0, which writes them.
///
/// # Errors
/// It could not be written.
fn score_file<'a>(json: &'a Option<PathBuf>, processes: &dyn Collective) -> Result<Option<&'a Path>> {
    let file = json.as_deref().filter(|_| processes.is_main());
    file.map_or(Ok(()), check_writable)?;
    Ok(file)
}

/// Writes scores as JSON, atomically, where there is a file for them.
///
/// # Errors
/// The file cannot be written, or a number is not finite, which JSON would write as `null`; the error names its key.
pub(super) fn write_scores(file: Option<&Path>, scores: &impl serde::Serialize) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    // TOML represents such numbers, which serde_json does not.
    let value = toml::Value::try_from(scores).map_err(|e| Error::file(file, e))?;
    match not_finite(&value) {
        Some(found) => Err(Error::file(file, format!("not written: {found} is not a finite number"))),
        None => write_json(file, scores),
    }
}

/// Key and value of the first number that is not finite.
fn not_finite(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::Float(number) if !number.is_finite() => Some(number.to_string()),
        toml::Value::Array(items) => items.iter().find_map(not_finite),
        toml::Value::Table(entries) => {
            entries.iter().find_map(|(key, value)| Some(format!("{key}: {}", not_finite(value)?)))
        }
        _ => None,
    }
}

/// Writes a value as JSON, atomically.
pub(super) fn write_json(file: &Path, scores: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(scores).map_err(|e| Error::file(file, e))?;
    write_atomically(file, |out| out.write_all(&json))
}

/// Prints the distances, one a line.
fn say_distances(scores: &GenerationScores) -> Result<()> {
    let line = |(name, value): (&str, f64)| say(&format!("{name:8} {value:.6}"));
    scores.named().into_iter().try_for_each(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_that_is_no_number_is_not_written_as_null() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("scores.json");
        let scores = |fid, kid| GenerationScores { fid: Some(fid), kid, ..Default::default() };
        for (fid, kid, found) in [
            (f64::NAN, None, "fid: NaN"),
            (1.0, Some(f64::INFINITY), "kid: inf"),
            (f64::NEG_INFINITY, None, "fid: -inf"),
        ] {
            let problem =
                write_scores(Some(&file), &[scores(1.0, None), scores(fid, kid)]).expect_err("no number").to_string();
            assert_eq!(problem, format!("{}: not written: {found} is not a finite number", file.display()));
            assert!(!file.exists());
        }
        write_scores(Some(&file), &scores(0.1 + 0.2, None)).expect("written");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "{\n  \"fid\": 0.30000000000000004\n}");
    }
}
