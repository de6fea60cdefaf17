//! What keys of adapter files begin with.
use crate::model::families::known;
use crate::system::error::Error;
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors by name.
pub(super) type Tensors = BTreeMap<String, Tensor>;

/// How layers are named behind a prefix.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum LayerNaming {
    /// The names of diffusers, which are those of this program.
    Diffusers,
    /// Those, or the names of the original checkpoint; with dots or underscores.
    Any,
}

pub(super) const DIFFUSERS_PREFIX: &str = "transformer.";
pub(super) const PEFT_PREFIX: &str = "base_model.model.";

/// The prefixes of a transformer's layers: diffusers, PEFT, the whole model of the paper's released code (alpha is the
/// rank there), OneTrainer, SimpleTuner with LyCORIS, kohya, ComfyUI and others.
pub(super) const PREFIXES: [(&str, LayerNaming); 8] = [
    (DIFFUSERS_PREFIX, LayerNaming::Diffusers),
    (PEFT_PREFIX, LayerNaming::Diffusers),
    ("backbone.transformer.", LayerNaming::Diffusers),
    ("lora_transformer_", LayerNaming::Any),
    ("lycoris_", LayerNaming::Any),
    ("lora_unet_", LayerNaming::Any),
    ("diffusion_model.", LayerNaming::Any),
    ("model.diffusion_model.", LayerNaming::Any),
];

/// The error for a key that names nothing known.
pub(super) fn unknown_key(file: &Path, key: &str) -> Error {
    let why = if key.starts_with("backbone.") {
        "is no part of an adapter: the file holds the whole model of the released code; convert it as the README says \
         under \"The published adapters\", which keeps the adapter and the score head"
            .to_string()
    } else {
        let prefixes: Vec<String> = PREFIXES.iter().map(|(prefix, _)| format!("{prefix}…")).collect();
        format!("is not a key of an {} adapter (expected {})", known::names(), prefixes.join(", "))
    };
    Error::file(file, format!("key {key} {why}"))
}
