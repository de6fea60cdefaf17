//! Layers of a block that an adapter can sit on, by diffusers' names, as far as they are known before a model is.
use super::FAMILIES;
use std::collections::BTreeSet;

/// Those of any family, each once.
pub fn adapter_targets() -> BTreeSet<&'static str> {
    let blocks = FAMILIES.into_iter().flat_map(|family| family.kohya().blocks);
    let layers = blocks.flat_map(|blocks| blocks.layers.iter().flat_map(|(_, shares)| shares.iter()));
    layers.map(|(layer, _)| *layer).collect()
}

/// Those that get an adapter where none are named: every family has them.
pub const DEFAULT_TARGETS: [&str; 4] = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"];
