//! What FLUX.1 and FLUX.2 have in common: a list of double-stream blocks and one of single-stream blocks, with their names
//! in the original checkpoint.
use crate::model::weights::naming::{ModuleNames, Shares};
use crate::model::weights::shapes::Shapes;
use crate::system::error::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// The list of double-stream blocks in diffusers' names.
pub(super) const DOUBLE_BLOCKS: &str = "transformer_blocks";

/// The list of single-stream blocks in diffusers' names.
pub(super) const SINGLE_BLOCKS: &str = "single_transformer_blocks";

/// The modulation of the norm before the output, which no adapter sits on: a scale and a shift in diffusers, in the original
/// checkpoint the shift first.
pub(super) const OUTPUT_NORM: &str = "norm_out.linear";

/// Layers of double-stream blocks around the joint attention, which adapters can sit on.
pub(super) const ATTENTION: ModuleNames = double_blocks(&[
    ("img_attn.qkv", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1)]),
    ("img_attn.proj", &[("attn.to_out.0", 1)]),
    ("txt_attn.qkv", &[("attn.add_q_proj", 1), ("attn.add_k_proj", 1), ("attn.add_v_proj", 1)]),
    ("txt_attn.proj", &[("attn.to_add_out", 1)]),
]);

/// Norms of the heads, and modules around the blocks, which no adapter sits on.
pub(super) static NORMS_AND_AROUND: [ModuleNames; 3] = [
    double_blocks(&[
        ("img_attn.norm.query_norm", &[("attn.norm_q", 1)]),
        ("img_attn.norm.key_norm", &[("attn.norm_k", 1)]),
        ("txt_attn.norm.query_norm", &[("attn.norm_added_q", 1)]),
        ("txt_attn.norm.key_norm", &[("attn.norm_added_k", 1)]),
    ]),
    single_blocks(&[("norm.query_norm", &[("attn.norm_q", 1)]), ("norm.key_norm", &[("attn.norm_k", 1)])]),
    ModuleNames::alone(&[
        ("img_in", &[("x_embedder", 1)]),
        ("txt_in", &[("context_embedder", 1)]),
        ("final_layer.linear", &[("proj_out", 1)]),
        ("final_layer.adaLN_modulation.1", &[(OUTPUT_NORM, 1)]),
    ]),
];

/// Some layers of double-stream blocks.
pub(super) const fn double_blocks(layers: Layers) -> ModuleNames {
    ModuleNames { original: "double_blocks.*", diffusers: "transformer_blocks.*", layers }
}

/// Some layers of single-stream blocks.
pub(super) const fn single_blocks(layers: Layers) -> ModuleNames {
    ModuleNames { original: "single_blocks.*", diffusers: "single_transformer_blocks.*", layers }
}

type Layers = &'static [(&'static str, Shares)];

/// Keys of `transformer/config.json` that the shapes show; heads are `head_dim` wide, unless the shapes show that, too.
pub(super) fn sizes(shapes: &Shapes, head_dim: Option<usize>) -> Value {
    let size = |name: &str, dimension| shapes.size(name, dimension);
    let head_dim = size(&format!("{DOUBLE_BLOCKS}.0.attn.norm_q.weight"), 0).or(head_dim).filter(|size| *size > 0);
    json!({
        "in_channels": size("x_embedder.weight", 1),
        "out_channels": size("proj_out.weight", 0),
        "num_layers": shapes.count(&format!("{DOUBLE_BLOCKS}.")),
        "num_single_layers": shapes.count(&format!("{SINGLE_BLOCKS}.")),
        "attention_head_dim": head_dim,
        "num_attention_heads": size("x_embedder.weight", 0).zip(head_dim).map(|(width, head_dim)| width / head_dim),
        "joint_attention_dim": size("context_embedder.weight", 1),
    })
}

/// The usual `patch_size`.
pub(super) fn one() -> usize {
    1
}

/// Refuses patches, which are packed before they come to the transformer, and another number of channels in its output.
pub(super) fn check_channels(file: &Path, patch: usize, inputs: usize, outputs: Option<usize>) -> Result<()> {
    match outputs.filter(|outputs| *outputs != inputs) {
        _ if patch != 1 => Err(Error::file(file, format!("patch_size is {patch}, expected 1"))),
        Some(out) => Err(Error::file(file, format!("out_channels is {out}, expected in_channels, {inputs}"))),
        None => Ok(()),
    }
}

/// Refuses features of a head, turned by a token's place along each axis, that are not all of the head's or no pairs.
pub(super) fn check_axes(file: &Path, axes: &[usize], head_dim: usize) -> Result<()> {
    let sum = axes.iter().try_fold(0usize, |sum, axis| sum.checked_add(*axis));
    match sum == Some(head_dim) && axes.iter().all(|axis| axis.is_multiple_of(2)) {
        true => Ok(()),
        false => Err(Error::file(
            file,
            format!("axes_dims_rope is {axes:?}, expected even numbers that add up to attention_head_dim, {head_dim}"),
        )),
    }
}
