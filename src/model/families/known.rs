//! The pipelines of all families, and what is known of these before any model is.
use super::flux1::pipeline::PIPELINE as FLUX1;
use super::flux2::pipeline::PIPELINE as FLUX2;
use super::pipelines::PipelineNames;
use super::sd3::pipeline::PIPELINE as SD3;
use std::collections::BTreeSet;

/// The pipelines that there are.
pub const PIPELINES: [&PipelineNames; 3] = [&SD3, &FLUX1, &FLUX2];

/// The pipeline whose class in `model_index.json` is `class`.
pub fn pipeline_of_class(class: &str) -> Option<&'static PipelineNames> {
    PIPELINES.into_iter().find(|names| names.is_class_of(class))
}

/// What errors that concern no one family call them: the names of all.
pub fn names() -> String {
    PIPELINES.map(|pipeline| pipeline.name).join(" or ")
}

/// Layers of a block of any family that an adapter can sit on, by diffusers' names, each once.
pub fn adapter_targets() -> BTreeSet<&'static str> {
    let blocks = PIPELINES.into_iter().flat_map(|pipeline| pipeline.kohya.blocks);
    let layers = blocks.flat_map(|blocks| blocks.layers.iter().flat_map(|(_, shares)| shares.iter()));
    layers.map(|(layer, _)| *layer).collect()
}

/// Those that get an adapter where none are named: every family has them.
pub const DEFAULT_TARGETS: [&str; 4] = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"];
