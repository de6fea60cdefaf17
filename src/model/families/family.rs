//! What a family is to the rest of the program.
use super::names::KohyaNames;
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

    /// Names of the layers in the original checkpoint, as kohya's trainer and ComfyUI have them.
    fn kohya(&self) -> &'static KohyaNames;
}
