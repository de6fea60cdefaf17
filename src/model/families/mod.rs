//! The model families: what is known of one family's denoiser stands in its folder, and [`Transformer`] drives any.
//!
//! A family implements [`Embedding`] (latents, time, guidance and text into tokens, and tokens into the velocity),
//! [`Block`] for every kind of block that it has, [`FamilyConfig`], which makes both of a model's files, and [`Family`], the
//! family's names in other tools' files. It is then listed in [`FAMILIES`]; nothing else knows it. What several families have
//! is in `stream_layers`, `output_layer`, `time_embedding` and `flux`.
//!
//! Blocks of all kinds are numbered through. Between blocks image and text tokens are two tensors ([`Streams`]): a block
//! that works on the joint sequence, as FLUX's single-stream blocks do, joins them itself, in whatever order its family
//! has. What blocks hand out ([`JointInputs`], [`Probe`]) has image tokens first.
mod block;
mod blur;
mod config;
mod family;
mod flux;
pub mod flux1;
pub mod flux2;
mod joint;
pub mod names;
pub mod original;
mod output_layer;
mod patches;
pub mod pipelines;
mod probe;
pub mod sd3;
mod stream_layers;
pub(crate) mod targets;
mod time_embedding;
mod transformer;

pub use block::{Block, Embedding, SavedActivations};
pub use blur::Blur;
pub use config::FamilyConfig;
pub use family::{Family, SigmaSpacing};
pub use joint::{Conditioning, Embedded, JointInputs, Probe, Streams};
pub use names::{KohyaNames, Release};
pub use pipelines::{EncoderFolders, PipelineNames, TextForm};
pub use probe::{image_to_text_logits, mean, mean_logits, mean_probability};
pub use transformer::{AdaptableLayer, Guidance, Transformer, TransformerConfig};

use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};

/// The families that there are.
pub const FAMILIES: [&dyn Family; 3] = [&sd3::Sd3, &flux1::Flux1, &flux2::Flux2];

/// Their pipelines.
pub fn pipelines() -> [&'static PipelineNames; FAMILIES.len()] {
    FAMILIES.map(Family::pipeline)
}

/// The pipeline whose class in `model_index.json` is `class`.
pub fn pipeline_of_class(class: &str) -> Option<&'static PipelineNames> {
    pipelines().into_iter().find(|names| names.is_class_of(class))
}

/// What errors that concern no one family call them: the names of all.
pub fn names() -> String {
    FAMILIES.map(Family::name).join(" or ")
}

/// The family of a model, by `_class_name` in `model_index.json` and in its transformer's configuration.
///
/// # Errors
/// It is none of [`FAMILIES`]: lists what they are called.
pub fn of(files: &ModelFiles) -> Result<&'static dyn Family> {
    let pipeline = files.known_pipeline()?;
    let has_pipeline = |family: &&dyn Family| family.pipeline().class == pipeline.class;
    let of_pipeline: Vec<&dyn Family> = FAMILIES.into_iter().filter(has_pipeline).collect();
    #[derive(serde::Deserialize)]
    struct TransformerClass {
        _class_name: Option<String>,
    }
    let TransformerClass { _class_name: name } = files.config(Part::Transformer)?;
    // A transformer that says nothing is what its pipeline has.
    let is_it = |family: &&dyn Family| name.as_deref().is_none_or(|name| family.transformer_class() == name);
    of_pipeline.iter().copied().find(is_it).ok_or_else(|| {
        let known: Vec<&str> = of_pipeline.iter().map(|family| family.transformer_class()).collect();
        let name = name.as_deref().unwrap_or_default();
        let problem = format!("_class_name is {name:?}, expected {}", known.join(" or "));
        Error::file(files.config_path(Part::Transformer), problem)
    })
}
