//! Where a part's weights lie in its folder: in one file or in shards, plain or in a variant such as `fp16`.
use super::shard_index::ShardIndex;
use crate::system::error::{Error, Result};
use crate::system::paths::is_file;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const EXTENSION: &str = ".safetensors";

/// A part's weights: one file, or the index of its shards and these in the order of their names.
pub(crate) struct Located {
    pub index: Option<PathBuf>,
    pub files: Vec<PathBuf>,
}

/// What the files are called that hold the weights, or list those that do.
pub(crate) struct WeightNames {
    pub single: String,
    /// As transformers and diffusers write it, and as older ones did.
    pub indexes: Vec<String>,
}

impl WeightNames {
    /// Of the plain weights, or of a variant.
    pub fn of(stem: &str, variant: Option<&str>) -> Self {
        let start = format!("{stem}{EXTENSION}");
        match variant {
            None => Self { single: start.clone(), indexes: vec![format!("{start}.index.json")] },
            Some(variant) => Self {
                single: format!("{stem}.{variant}{EXTENSION}"),
                indexes: vec![format!("{start}.index.{variant}.json"), format!("{start}.{variant}.index.json")],
            },
        }
    }
}

/// Finds the weights called `stem` in a folder: those of `variant`, else the plain ones, else those of the only variant
/// that is there.
///
/// # Errors
/// Those of [`locate`], and where there are none.
pub(crate) fn require(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Located> {
    let plain = WeightNames::of(stem, None);
    let none = || format!("no weights: expected {} or {}", plain.single, plain.indexes.concat());
    locate(folder, stem, variant)?.ok_or_else(|| Error::file(folder, none()))
}

/// [`require`], of which `None` is that there are none.
///
/// # Errors
/// There are only variants, and the wanted one is not among them, or none is wanted; an index cannot be read.
pub(crate) fn locate(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Option<Located>> {
    let wanted = variant.map(|variant| find(folder, &WeightNames::of(stem, Some(variant)))).transpose()?.flatten();
    if wanted.is_some() {
        return Ok(wanted);
    }
    let plain = find(folder, &WeightNames::of(stem, None))?;
    let variants = variants(folder, stem);
    match (plain, variants.first(), variants.len(), variant) {
        (Some(plain), ..) => Ok(Some(plain)),
        (None, None, ..) => Ok(None),
        (None, Some(only), 1, None) => {
            tracing::info!("{}: only the variant {only:?} is there, it is taken", folder.display());
            find(folder, &WeightNames::of(stem, Some(only)))
        }
        _ => {
            let names: Vec<String> = variants.iter().map(|name| format!("{name:?}")).collect();
            let problem = format!("no weights: only variants are there, {}: name one as variant", names.join(", "));
            Err(Error::file(folder, problem))
        }
    }
}

fn find(folder: &Path, names: &WeightNames) -> Result<Option<Located>> {
    let single = folder.join(&names.single);
    if is_file(&single)? {
        return Ok(Some(Located { index: None, files: vec![single] }));
    }
    for index in names.indexes.iter().map(|name| folder.join(name)) {
        if is_file(&index)? {
            let parsed = ShardIndex::read(&index)?;
            let files = parsed.shards().into_iter().map(|shard| folder.join(shard)).collect();
            return Ok(Some(Located { index: Some(index), files }));
        }
    }
    Ok(None)
}

/// The variants of `stem` in a folder: `fp16` of `STEM.fp16.safetensors` or `STEM.safetensors.index.fp16.json`.
fn variants(folder: &Path, stem: &str) -> BTreeSet<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let variant_of = |name: &str| {
        let rest = name.strip_prefix(stem)?.strip_prefix('.')?;
        let index = rest.strip_prefix(&EXTENSION[1..]).and_then(|rest| rest.strip_suffix(".json"));
        let variant = match index {
            Some(index) => index.strip_prefix(".index.").or_else(|| index.strip_prefix('.')?.strip_suffix(".index")),
            None => rest.strip_suffix(EXTENSION),
        };
        // `fp16-00001-of-00002` is a shard.
        variant.filter(|variant| !variant.is_empty() && !variant.contains(['.', '-'])).map(str::to_owned)
    };
    names.filter_map(|name| variant_of(&name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_weights_come_before_those_of_a_variant_that_nobody_named() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let found = |variant: Option<&str>| {
            let located = require(folder.path(), "model", variant).map_err(|problem| problem.to_string())?;
            Ok::<_, String>(
                located.files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect(),
            )
        };
        let one = |name: &str| Ok(vec![name.to_string()]);
        assert!(found(None).is_err_and(|text| text.contains("expected model.safetensors or")));
        std::fs::write(at("model.fp16.safetensors"), "").expect("write");
        assert_eq!(found(None), one("model.fp16.safetensors"));
        assert_eq!(found(Some("fp16")), one("model.fp16.safetensors"));
        let refused = found(Some("bf16")).expect_err("bf16 is not there");
        assert!(refused.contains("only variants are there, \"fp16\": name one"), "{refused}");
        std::fs::write(at("model.safetensors.index.non_ema.json"), r#"{"weight_map": {"a": "b"}}"#).expect("write");
        let refused = found(None).expect_err("two variants");
        assert!(refused.contains("\"fp16\", \"non_ema\": name one as variant"), "{refused}");
        assert_eq!(found(Some("non_ema")), one("b"));
        std::fs::write(at("model.safetensors"), "").expect("write");
        assert_eq!(found(None), one("model.safetensors"));
        assert_eq!(found(Some("fp16")), one("model.fp16.safetensors"));
        assert_eq!(found(Some("bf16")), one("model.safetensors"));
        for (name, index) in [("x", "x.safetensors.index.fp16.json"), ("y", "y.safetensors.fp16.index.json")] {
            let shards = r#"{"weight_map": {"a": "1.fp16-00002-of-00002.safetensors", "b": "0.safetensors"}}"#;
            std::fs::write(at(index), shards).expect("write");
            let located = require(folder.path(), name, None).expect("the only variant");
            assert_eq!(located.index, Some(at(index)));
            assert_eq!(located.files, [at("0.safetensors"), at("1.fp16-00002-of-00002.safetensors")]);
        }
    }
}
