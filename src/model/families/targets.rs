//! Layers of a block that an adapter can sit on, by diffusers' names, as far as they are known before a model is.
use super::{flux1, flux2, sd3};
use std::collections::BTreeSet;

/// Of each family: all such layers, and those that get an adapter where none are named.
const FAMILIES: [(&[&str], &[&str]); 3] = [
    (&sd3::names::ADAPTER_TARGETS, &sd3::names::DEFAULT_TARGETS),
    (&flux1::names::ADAPTER_TARGETS, &flux1::names::DEFAULT_TARGETS),
    (&flux2::names::ADAPTER_TARGETS, &flux2::names::DEFAULT_TARGETS),
];

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
