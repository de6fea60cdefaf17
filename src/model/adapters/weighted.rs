//! Several adapters on one model, each with a weight.
use super::adapter::{Adapter, Adapters};
use super::formats;
use crate::system::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An adapter's file or folder and how strongly it counts, written `FILE` or `FILE:WEIGHT`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedFile {
    /// The file, or the folder that holds it.
    pub path: PathBuf,
    /// What ΔW is multiplied with.
    pub weight: f64,
}

impl FromStr for WeightedFile {
    type Err = String;

    /// What follows the last colon is the weight if it is a number: `C:\\lora.safetensors` has none. A file whose own name
    /// ends so is meant as it is.
    fn from_str(text: &str) -> Result<Self, String> {
        let whole = || Self { path: text.into(), weight: 1.0 };
        let Some((path, weight)) = text.rsplit_once(':') else { return Ok(whole()) };
        match weight.parse::<f64>() {
            Ok(weight) if !path.is_empty() && !Path::new(text).exists() => match weight.is_finite() {
                true => Ok(Self { path: path.into(), weight }),
                false => Err(format!("the weight {weight} is not finite")),
            },
            _ => Ok(whole()),
        }
    }
}

/// Reads adapters and adds them up by layer: ΔW is the sum of theirs, each times its weight. One alone with the weight 1
/// is as its file has it.
///
/// # Errors
/// Those of [`formats::read`]; layers of one name that differ in size.
pub fn read_all(files: &[WeightedFile]) -> Result<Adapters> {
    if let [WeightedFile { path, weight: 1.0 }] = files {
        return formats::read(path);
    }
    let all = files.iter().map(|file| Ok((formats::read(&file.path)?, file))).collect::<Result<Vec<_>>>()?;
    let mut layers: BTreeMap<&String, Vec<(&dyn Adapter, f64)>> = BTreeMap::new();
    for (adapters, WeightedFile { path, weight }) in &all {
        for (layer, adapter) in adapters {
            let parts = layers.entry(layer).or_default();
            if let Some((other, _)) = parts.first().filter(|(other, _)| other.sizes() != adapter.sizes()) {
                let (found, expected) = (adapter.sizes(), other.sizes());
                let problem =
                    format!("{layer}: inputs and outputs are {found:?}, in {} {expected:?}", files[0].path.display());
                return Err(Error::file(path, problem));
            }
            parts.push((adapter.as_ref(), *weight));
        }
    }
    let sum = |(layer, parts): (&String, Vec<(&dyn Adapter, f64)>)| {
        let kind = parts.first().map(|(adapter, _)| adapter.files());
        let kind = kind.ok_or_else(|| Error::Failed(format!("{layer} has no adapter")))?;
        Ok((layer.clone(), kind.sum(&parts)?))
    };
    layers.into_iter().map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_is_a_number_behind_the_last_colon() {
        let folder = tempfile::tempdir().expect("folder");
        let odd = folder.path().join("odd:2").display().to_string();
        std::fs::write(&odd, "").ok();
        let mut cases = vec![
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors:0.5", "a.safetensors", 0.5),
            ("a.safetensors:-1e-1", "a.safetensors", -0.1),
            (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
            (r"C:\loras\a.safetensors:2", r"C:\loras\a.safetensors", 2.0),
            ("C:/a:.7", "C:/a", 0.7),
            ("a:b", "a:b", 1.0),
            (":2", ":2", 1.0),
        ];
        if Path::new(&odd).exists() {
            cases.push((&odd, &odd, 1.0));
        }
        for (text, path, weight) in cases {
            assert_eq!(text.parse(), Ok(WeightedFile { path: path.into(), weight }), "{text}");
        }
        assert!("a:inf".parse::<WeightedFile>().is_err_and(|problem| problem.contains("not finite")));
    }
}
