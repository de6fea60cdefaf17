//! Stable Diffusion 3 and 3.5: the MM-DiT (diffusers' `SD3Transformer2DModel`).
mod block;
mod config;
mod embed;
mod names;
mod original;
mod pipeline;

pub use config::{MmDitConfig, release};

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
pub struct Sd3;

impl Family for Sd3 {
    fn name(&self) -> &'static str {
        "SD3"
    }

    fn transformer_class(&self) -> &'static str {
        "SD3Transformer2DModel"
    }

    fn pipeline(&self) -> &'static PipelineNames {
        &PIPELINE
    }

    fn config(&self, files: &ModelFiles) -> Result<TransformerConfig> {
        Ok(MmDitConfig::open(files)?.general())
    }

    fn load(&self, files: &ModelFiles, depth: Option<usize>, dtype: DType, device: &Device) -> Result<Transformer> {
        MmDitConfig::load(files, depth, dtype, device)
    }

    fn sigma_spacing(&self) -> SigmaSpacing {
        SigmaSpacing::Trained
    }

    fn kohya(&self) -> &'static KohyaNames {
        &KOHYA
    }
}
