//! The model families: what is known of one family's denoiser stands in its folder, and [`Transformer`] drives any.
//!
//! A family implements [`Embedding`] (latents, time, guidance and text into tokens, and tokens into the velocity),
//! [`Block`] for every kind of block that it has, and [`Family`], which reads both from a model's files and has the
//! family's names in other tools' files. It is then listed in [`FAMILIES`]; nothing else knows it.
//!
//! Blocks of all kinds are numbered through. Between blocks image and text tokens are two tensors ([`Streams`]): a block
//! that works on the joint sequence, as FLUX's single-stream blocks do, joins them itself, in whatever order its family
//! has. What blocks hand out ([`JointInputs`], [`Probe`]) has image tokens first.
mod blur;
mod probe;
pub mod sd3;
mod transformer;

pub use blur::Blur;
pub use probe::{image_to_text_logits, mean, mean_logits, mean_probability};
pub use sd3::{Embedded, JointInputs, Probe, Streams};
pub use transformer::{AdaptableLayer, Transformer, TransformerConfig};

use crate::model::projection::Projection;
use crate::model::text::TextEmbedding;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use std::fmt;

/// The families that there are.
pub const FAMILIES: [&dyn Family; 1] = [&sd3::Sd3];

/// A family of denoisers.
pub trait Family: fmt::Debug + Sync {
    /// For people, such as `SD3`.
    fn name(&self) -> &'static str;

    /// `_class_name` in `transformer/config.json`, as diffusers writes it.
    fn transformer_class(&self) -> &'static str;

    /// `_class_name` in `model_index.json`; that of a pipeline for another task may go on after the name less `Pipeline`.
    fn pipeline_class(&self) -> &'static str;

    /// Reads and checks a model's sizes.
    ///
    /// # Errors
    /// A key is missing, or what is there does not make a model.
    fn config(&self, files: &ModelFiles) -> Result<TransformerConfig>;

    /// Loads a model, kept in memory as `dtype`; of its blocks the first `depth`, where that is given: these serve for
    /// looking at their attention.
    ///
    /// Arithmetic is in f32 on the CPU, and in `dtype` on CUDA.
    ///
    /// # Errors
    /// As [`Self::config`]; the weights are not those of such a model and nothing else.
    fn load(&self, files: &ModelFiles, depth: Option<usize>, dtype: DType, device: &Device) -> Result<Transformer>;

    /// Layers of a block that an adapter can sit on, by their names within it; the first [`Self::default_targets`] are
    /// those of a run that names none.
    fn adapter_targets(&self) -> &'static [&'static str];

    /// How many of the targets get an adapter where none are named.
    fn default_targets(&self) -> usize;

    /// Names of the layers in the original checkpoint, as kohya's trainer and ComfyUI have them.
    fn kohya(&self) -> &'static KohyaNames;
}

/// Into a family's tokens and out of them.
pub trait Embedding {
    /// Latents `[batch, channels, h, w]`, as the autoencoder makes them, to packed tokens; timestep `[batch]` (1000σ),
    /// best on the host; the text, of which equal tokens at the end may be computed once.
    ///
    /// A model that embeds its guidance scale has it among what it was loaded with.
    fn embed(&self, latents: &Tensor, timestep: &Tensor, text: &TextEmbedding) -> TensorResult<Embedded>;

    /// Image tokens `[batch, tokens, width]`, which are `grid` rows and columns, to the velocity `[batch, channels, h, w]`
    /// in f32.
    fn finish(&self, image: &Tensor, conditioning: &Tensor, grid: (usize, usize)) -> TensorResult<Tensor>;
}

/// One block with joint attention, differentiable in its adapters and in the streams.
pub trait Block {
    /// The layers that an adapter can sit on, by their names within the block.
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)>;

    /// Queries and keys of the joint attention alone: all that segmentation needs of the expert block. `conditioning` is
    /// [`Embedded::conditioning`].
    fn probe(&self, streams: &Streams, conditioning: &Tensor) -> TensorResult<Probe>;

    /// The block's output, and what its joint attention was computed from; `attend` returns what
    /// [`JointInputs::attend`] does, or something else in its place.
    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Tensor,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Tensor>,
    ) -> TensorResult<(Streams, JointInputs)>;

    /// The block's output, and queries and keys of its joint attention.
    fn forward(&self, streams: &Streams, conditioning: &Tensor) -> TensorResult<(Streams, Probe)> {
        let (out, inputs) = self.forward_with(streams, conditioning, &mut JointInputs::attend)?;
        Ok((out, inputs.probe()))
    }

    /// Whether the model's output depends on `layer`.
    fn reaches_output(&self, layer: &str) -> bool;

    /// Whether scores between the probe's image queries and text keys depend on `layer`, or, with `image_keys`, those
    /// between its image queries and all keys.
    fn reaches_probe(&self, layer: &str, image_keys: bool) -> bool;
}

/// What kohya's metadata calls a released model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// `ss_base_model_version`, such as `5-medium`.
    pub base_model_version: &'static str,
    /// `modelspec.architecture` without what follows the slash, such as `stable-diffusion-3-5-medium`.
    pub architecture: &'static str,
}

/// A family's layers in the original checkpoint, where some that are several in diffusers are one.
pub struct KohyaNames {
    /// `ss_network_module`: the module of kohya's trainer that makes such adapters.
    pub network_module: &'static str,
    pub blocks: &'static [KohyaBlocks],
    /// Whether the two halves of a layer's outputs lie the other way round there, given its name within the block and its
    /// inputs and outputs.
    pub swaps_halves: fn(layer: &str, sizes: (usize, usize)) -> bool,
}

/// Names of one list of blocks.
pub struct KohyaBlocks {
    /// Before the block's number, in kohya's names: `lora_unet_joint_blocks_`.
    pub stem: &'static str,
    /// Before it in diffusers' names: `transformer_blocks.`
    pub diffusers: &'static str,
    /// A layer there, and the layers of diffusers that are its outputs, in order, each with its share of them.
    pub layers: &'static [(&'static str, &'static [(&'static str, usize)])],
}

/// What errors that concern no one family call them: the names of all.
pub fn names() -> String {
    FAMILIES.map(Family::name).join(" or ")
}

/// The family of the denoiser in a model's files, by `_class_name` in its configuration.
///
/// # Errors
/// It is none of [`FAMILIES`]: lists what they are called.
pub fn of(files: &ModelFiles) -> Result<&'static dyn Family> {
    #[derive(serde::Deserialize)]
    struct ClassName {
        _class_name: String,
    }
    let ClassName { _class_name: name } = files.config(Part::Transformer)?;
    FAMILIES.into_iter().find(|family| family.transformer_class() == name).ok_or_else(|| {
        let known = FAMILIES.map(Family::transformer_class).join(", ");
        let problem = format!("_class_name is {name:?}, which is not supported; known are {known}");
        Error::file(files.config_path(Part::Transformer), problem)
    })
}
