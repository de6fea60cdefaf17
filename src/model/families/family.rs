//! What a family is to the rest of the program.
use super::names::KohyaNames;
use super::pipelines::PipelineNames;
use super::transformer::{Transformer, TransformerConfig};
use crate::model::weights::files::ModelFiles;
use crate::system::error::Result;
use candle_core::{DType, Device};
use std::fmt;

/// A family of denoisers.
pub trait Family: fmt::Debug + Sync {
    /// For people, such as `SD3`.
    fn name(&self) -> &'static str;

    /// `_class_name` in `transformer/config.json`, as diffusers writes it.
    fn transformer_class(&self) -> &'static str;

    /// The pipeline in the diffusers layout.
    fn pipeline(&self) -> &'static PipelineNames;

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

    /// How a sampler's noise levels are spaced before they are shifted.
    fn sigma_spacing(&self) -> SigmaSpacing;

    /// Names of the layers in the original checkpoint, as kohya's trainer and ComfyUI have them.
    fn kohya(&self) -> &'static KohyaNames;
}

/// How a sampler's noise levels are spaced before they are shifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigmaSpacing {
    /// Evenly between the first and last of training's levels, shifted as these are, and then shifted again. The shift is
    /// one number.
    Trained,
    /// Evenly from 1 to one over the number of steps. The shift may depend on the size of the image.
    Even,
    /// Evenly, too. A shift that depends on the image's size depends on the number of steps as well (diffusers:
    /// `compute_empirical_mu`).
    EvenEmpirical,
}
