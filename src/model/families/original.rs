//! What is known of a family's models besides their tensors, where these come in one file: no configuration is beside them.
use crate::model::weights::naming::Naming;
use crate::model::weights::shapes::Shapes;
use serde_json::Value;

/// A family's models as they were released, in files of the original code's names.
#[derive(Debug)]
pub struct Original {
    /// The transformer's names.
    pub naming: Naming,
    /// Tensors that a transformer of this family has and none of another, in the original names and in diffusers'.
    pub marks: [&'static [&'static str]; 2],
    /// Keys of `transformer/config.json` that the shapes do not show.
    pub transformer: fn() -> Value,
    /// Keys of `transformer/config.json` that they do show; heads are `head_dim` wide, unless the shapes show that, too.
    pub transformer_sizes: fn(shapes: &Shapes, head_dim: Option<usize>) -> Value,
    /// Keys of `vae/config.json` that the shapes do not show.
    pub vae: fn() -> Value,
    /// `scheduler_config.json` of a model with these shapes.
    pub scheduler: fn(&Shapes) -> Value,
    /// What the file of the autoencoder is usually called.
    pub vae_file: &'static str,
    /// The repository of the hub whose tokenizers such models have.
    pub repository: &'static str,
}
