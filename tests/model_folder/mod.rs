//! Copies of a model's folder, for a test to change.
use candle_core::Tensor;
use seg4diff::model::weights::{read_all, write};
use std::collections::BTreeMap;
use std::path::Path;

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("folder") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// Rewrites a safetensors file.
pub fn edit_tensors(file: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let mut tensors = read_all(file).expect("tensors");
    change(&mut tensors);
    write(file, &tensors, &BTreeMap::new()).expect("write");
}
