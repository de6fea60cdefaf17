//! What several processes have encoded comes together at rank 0, which writes it.
use crate::data::cache::Key;
use crate::distributed::Collective;
use crate::system::error::{Error, Result};

/// What came of a sample, or of a part of it.
pub(super) enum Encoded {
    /// An entry for the cache.
    Entry(Key, Vec<f32>),
    /// A broken sample: its name and the reason.
    Broken(String, String),
}

/// What all processes have `made`, in rank order, at all of them; the values at rank 0 alone.
///
/// # Errors
/// A process has failed.
pub(super) fn tell(made: Vec<Encoded>, processes: &dyn Collective) -> Result<Vec<Encoded>> {
    if processes.size() == 1 {
        return Ok(made);
    }
    let failed = |problem: String| Error::Failed(format!("what processes have encoded cannot be told: {problem}"));
    // A key with the number of its values, or a broken sample.
    let (mut lines, mut values) = (vec![], vec![]);
    for made in made {
        match made {
            Encoded::Entry(key, of_key) => {
                lines.push((key.name(), None, of_key.len()));
                values.extend(of_key.iter().flat_map(|value| value.to_le_bytes()));
            }
            Encoded::Broken(name, reason) => lines.push((name, Some(reason), 0)),
        }
    }
    let lines = serde_json::to_vec(&lines).map_err(|e| failed(e.to_string()))?;
    let (lines, values) = (processes.gather_bytes(&lines)?, processes.gather_bytes_at_main(&values)?);
    let mut all = vec![];
    for (rank, lines) in lines.iter().enumerate() {
        let mut values = values.get(rank).map(Vec::as_slice).unwrap_or_default();
        let lines: Vec<(String, Option<String>, usize)> =
            serde_json::from_slice(lines).map_err(|e| failed(e.to_string()))?;
        for (name, reason, count) in lines {
            if let Some(reason) = reason {
                all.push(Encoded::Broken(name, reason));
                continue;
            }
            let key = Key::parse(&name).ok_or_else(|| failed(format!("{name} is no key")))?;
            let mut of_key = vec![];
            if processes.is_main() {
                let (own, rest) =
                    values.split_at_checked(4 * count).ok_or_else(|| failed("values are missing".into()))?;
                values = rest;
                of_key.extend(own.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            all.push(Encoded::Entry(key, of_key));
        }
    }
    Ok(all)
}
