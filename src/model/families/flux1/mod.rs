//! FLUX.1, dev and schnell (diffusers' `FluxTransformer2DModel`).
mod config;
mod double;
mod embed;
mod names;
mod original;
mod pipeline;
mod single;

pub use config::FluxConfig;

use crate::model::families::config::FamilyConfig;
use crate::model::families::family::{Family, SigmaSpacing};
use crate::model::families::names::KohyaNames;
use crate::model::families::pipelines::PipelineNames;
use crate::model::families::transformer::{Transformer, TransformerConfig};
use crate::model::weights::files::ModelFiles;
use crate::system::error::Result;
use candle_core::{DType, Device};
use names::KOHYA;
use pipeline::PIPELINE;

/// The family.
#[derive(Debug)]
pub struct Flux1;

impl Family for Flux1 {
    fn name(&self) -> &'static str {
        "FLUX.1"
    }

    fn transformer_class(&self) -> &'static str {
        "FluxTransformer2DModel"
    }

    fn pipeline(&self) -> &'static PipelineNames {
        &PIPELINE
    }

    fn config(&self, files: &ModelFiles) -> Result<TransformerConfig> {
        Ok(FluxConfig::open(files)?.general())
    }

    fn load(&self, files: &ModelFiles, depth: Option<usize>, dtype: DType, device: &Device) -> Result<Transformer> {
        FluxConfig::load(files, depth, dtype, device)
    }

    /// diffusers' `FluxPipeline.__call__` gives its scheduler the levels.
    fn sigma_spacing(&self) -> SigmaSpacing {
        SigmaSpacing::Even
    }

    fn kohya(&self) -> &'static KohyaNames {
        &KOHYA
    }
}
