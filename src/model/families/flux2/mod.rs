//! FLUX.2-klein (diffusers' `Flux2Transformer2DModel`).
mod config;
mod double;
mod embed;
mod feed_forward;
pub mod names;
pub mod original;
pub mod pipeline;
mod single;

pub use config::Flux2Config;

use crate::model::families::family::{Family, SigmaSpacing};
use crate::model::families::names::KohyaNames;
use crate::model::families::pipelines::PipelineNames;
use crate::model::families::transformer::{Guidance, Transformer, TransformerConfig};
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::Result;
use candle_core::{DType, Device};
use double::DoubleBlock;
use embed::Flux2Embedding;
use names::KOHYA;
use pipeline::PIPELINE;
use single::SingleBlock;

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
        let weights = files.weights(Part::Transformer, dtype, device)?;
        let model = from_weights(Flux2Config::open(files)?, depth, &weights, dtype, device)?;
        Ok(Transformer { config: self.config(files)?, ..model })
    }

    /// diffusers' `Flux2KleinPipeline.__call__` gives its scheduler the levels, and `compute_empirical_mu`'s shift.
    fn sigma_spacing(&self) -> SigmaSpacing {
        SigmaSpacing::EvenEmpirical
    }

    fn kohya(&self) -> &'static KohyaNames {
        &KOHYA
    }
}

/// Takes a model of these sizes from `weights`, which must hold it and nothing else; its first `depth` blocks alone where
/// that is given.
///
/// Arithmetic is in f32 on the CPU, and in `dtype`, the weights', on CUDA.
///
/// # Errors
/// A tensor is missing, superfluous or of another shape.
pub fn from_weights(
    config: Flux2Config,
    depth: Option<usize>,
    weights: &Weights,
    dtype: DType,
    device: &Device,
) -> Result<Transformer> {
    let compute = if device.is_cpu() { DType::F32 } else { dtype };
    let embedding = Box::new(Flux2Embedding::load(weights, &config, compute)?);
    Transformer::from_blocks(config.general(), embedding, depth, weights, |layer| {
        Ok(match layer.checked_sub(config.num_layers) {
            None => Box::new(DoubleBlock::load(weights, &config, layer)?),
            Some(number) => Box::new(SingleBlock::load(weights, &config, number)?),
        })
    })
}
