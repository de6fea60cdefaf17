//! The index of a part's shards, `STEM.safetensors.index.json`: which file holds which tensor.
use crate::system::error::{Error, Result};
use crate::system::json::parse_json;
use crate::system::limits::MODEL_JSON;
use crate::system::plain_name;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What an index says.
pub struct ShardIndex {
    /// Tensor to the name of its file, which lies beside the index.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// # Errors
    /// It cannot be read, is no index, or names files that are not plainly in its own folder.
    pub fn read(file: &Path) -> Result<Self> {
        let wrong = |problem: String| Error::file(file, format!("not an index of shards: {problem}"));
        let parsed: serde_json::Value = parse_json(file, MODEL_JSON, wrong)?;
        let map = parsed.get("weight_map").and_then(|map| map.as_object());
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in map.ok_or_else(|| wrong("no weight_map".into()))? {
            let shard = shard.as_str().ok_or_else(|| wrong(format!("the file of tensor {tensor} is no text")))?;
            plain_name::check(shard).map_err(|problem| wrong(format!("tensor {tensor}: {problem}")))?;
            weight_map.insert(tensor.clone(), shard.to_string());
        }
        Ok(Self { weight_map })
    }

    /// The files, each once, by name.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}
