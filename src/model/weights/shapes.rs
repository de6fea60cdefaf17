//! What the shapes of a network's tensors show of its sizes, where no configuration says them.
use std::collections::{BTreeMap, BTreeSet};

/// The shapes of a network's tensors, by diffusers' names.
#[derive(Clone, Debug, Default)]
pub struct Shapes(pub BTreeMap<String, Vec<usize>>);

impl Shapes {
    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A dimension of the tensor `name`, counted from 0.
    pub fn size(&self, name: &str, dimension: usize) -> Option<usize> {
        self.0.get(name)?.get(dimension).copied()
    }

    /// The numbers that stand behind `prefix` in names, as in `transformer_blocks.3.attn…` behind `transformer_blocks.`.
    pub fn numbers(&self, prefix: &str) -> BTreeSet<usize> {
        let behind = self.0.keys().filter_map(|name| name.strip_prefix(prefix)?.split('.').next()?.parse().ok());
        behind.collect()
    }

    /// How many blocks there are behind `prefix`, the missing among them counted; none where there is none.
    pub fn count(&self, prefix: &str) -> Option<usize> {
        self.numbers(prefix).last().map(|last| last + 1)
    }
}
