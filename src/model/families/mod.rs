//! The model families: what is known of one family's denoiser stands in its folder, and [`Transformer`] drives any.
//!
//! A family implements [`Embedding`] (latents, time, guidance and text into tokens, and tokens into the velocity),
//! [`Block`] for every kind of block that it has, [`FamilyConfig`], the sizes in a model's files, and [`Family`], which makes
//! both of these; its [`PipelineNames`] say how its files are laid out and named. It is then listed in `known::PIPELINES`
//! and [`FAMILIES`]; nothing else knows it. What several families have is in `double_stream`, `stream_layers`,
//! `output_layer`, `time_embedding` and `flux`.
//!
//! Blocks of all kinds are numbered through. Between blocks image and text tokens are two tensors ([`Streams`]): a block
//! that works on the joint sequence, as FLUX's single-stream blocks do, joins them itself, in whatever order its family
//! has. What blocks hand out ([`JointInputs`], [`Probe`]) has image tokens first.
mod block;
mod blur;
mod config;
mod double_stream;
mod family;
mod flux;
pub mod flux1;
pub mod flux2;
mod joint;
pub(crate) mod known;
pub mod names;
pub mod original;
mod output_layer;
mod patches;
pub mod pipelines;
mod probe;
pub mod sd3;
mod stream_layers;
mod time_embedding;
mod transformer;

pub use block::{Block, Embedding, SavedActivations};
pub use blur::Blur;
pub use config::FamilyConfig;
pub use family::{Family, KnownFamily};
pub use joint::{Conditioning, Embedded, JointInputs, Probe, Streams};
pub use names::{KohyaNames, Release};
pub use pipelines::{EncoderFolders, PipelineNames, SigmaSpacing, TextForm};
pub use probe::{image_to_text_logits, mean, mean_logits, mean_probability};
pub use transformer::{AdaptableLayer, Guidance, Transformer, TransformerConfig};

use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};

/// The families that there are.
pub const FAMILIES: [KnownFamily; known::PIPELINES.len()] = [
    KnownFamily::of::<sd3::MmDitConfig>(),
    KnownFamily::of::<flux1::FluxConfig>(),
    KnownFamily::of::<flux2::Flux2Config>(),
];

/// The family of a model, by `_class_name` in `model_index.json` and in its transformer's configuration.
///
/// # Errors
/// It is none of [`FAMILIES`]: lists what they are called.
pub fn of(files: &ModelFiles) -> Result<&'static KnownFamily> {
    let PipelineNames { class, transformer_class, .. } = files.known_pipeline()?;
    #[derive(serde::Deserialize)]
    struct TransformerClass {
        _class_name: Option<String>,
    }
    let TransformerClass { _class_name: name } = files.config(Part::Transformer)?;
    // A transformer that says nothing is what its pipeline has.
    let name = name.as_deref().unwrap_or(transformer_class);
    let is_it = |family: &&KnownFamily| family.pipeline.class == *class && name == *transformer_class;
    FAMILIES.iter().find(is_it).ok_or_else(|| {
        let problem = format!("_class_name is {name:?}, expected {transformer_class}");
        Error::file(files.config_path(Part::Transformer), problem)
    })
}
