//! Layers of a block that an adapter can sit on, by diffusers' names, as far as they are known before a model is.
use super::sd3::names::{ADAPTER_TARGETS, DEFAULT_TARGETS};
use std::collections::BTreeSet;

/// Of each family: all such layers, and those that get an adapter where none are named.
const FAMILIES: [(&[&str], &[&str]); 1] = [(&ADAPTER_TARGETS, &DEFAULT_TARGETS)];

/// Those of any family, each once.
pub fn adapter_targets() -> BTreeSet<&'static str> {
    FAMILIES.iter().flat_map(|(targets, _)| targets.iter().copied()).collect()
}

/// Those that get an adapter where none are named, in every family.
pub fn default_targets() -> Vec<&'static str> {
    let [(_, first), others @ ..] = &FAMILIES;
    let in_all = |target: &&str| others.iter().all(|(_, targets)| targets.contains(target));
    first.iter().copied().filter(in_all).collect()
}
