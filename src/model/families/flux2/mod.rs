//! FLUX.2-klein (diffusers' `Flux2Transformer2DModel`).
mod config;
mod double;
mod embed;
mod feed_forward;
mod names;
mod original;
mod pipeline;
mod single;

pub use config::Flux2Config;

use crate::model::families::config::FamilyConfig;
use crate::model::families::family::{Family, SigmaSpacing};
use crate::model::families::names::KohyaNames;
use crate::model::families::pipelines::PipelineNames;
use crate::model::families::transformer::{Guidance, Transformer, TransformerConfig};
use crate::model::weights::files::ModelFiles;
use crate::system::error::Result;
use candle_core::{DType, Device};
use names::KOHYA;
use pipeline::PIPELINE;

/// The family.
#[derive(Debug)]
pub struct Flux2;

impl Family for Flux2 {
    fn name(&self) -> &'static str {
        "FLUX.2-klein"
    }

    fn transformer_class(&self) -> &'static str {
        "Flux2Transformer2DModel"
    }

    fn pipeline(&self) -> &'static PipelineNames {
        &PIPELINE
    }

    /// A distilled model is not guided, as diffusers' pipeline has it (`is_distilled`).
    fn config(&self, files: &ModelFiles) -> Result<TransformerConfig> {
        #[derive(serde::Deserialize)]
        struct PipelineConfig {
            #[serde(default)]
            is_distilled: bool,
        }
        let config = Flux2Config::open(files)?.general();
        let is_distilled = !files.is_one_file() && files.pipeline_config::<PipelineConfig>()?.is_distilled;
        Ok(if is_distilled { TransformerConfig { guidance: Guidance::None, ..config } } else { config })
    }

    fn load(&self, files: &ModelFiles, depth: Option<usize>, dtype: DType, device: &Device) -> Result<Transformer> {
        Ok(Transformer { config: self.config(files)?, ..Flux2Config::load(files, depth, dtype, device)? })
    }

    /// diffusers' `Flux2KleinPipeline.__call__` gives its scheduler the levels, and `compute_empirical_mu`'s shift.
    fn sigma_spacing(&self) -> SigmaSpacing {
        SigmaSpacing::EvenEmpirical
    }

    fn kohya(&self) -> &'static KohyaNames {
        &KOHYA
    }
}
