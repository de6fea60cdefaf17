//! Changes of safetensors files.
use candle_core::Tensor;
use seg4diff::model::weights::{read_all, write};
use std::collections::BTreeMap;
use std::path::Path;

/// Rewrites a safetensors file.
pub fn edit_tensors(file: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let mut tensors = read_all(file).expect("tensors");
    change(&mut tensors);
    write(file, &tensors, &BTreeMap::new()).expect("write");
}
