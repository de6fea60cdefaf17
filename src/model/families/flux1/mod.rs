//! FLUX.1, dev and schnell (diffusers' `FluxTransformer2DModel`).
mod config;
mod double;
mod embed;
pub mod names;
pub mod original;
pub mod pipeline;
mod single;

pub use config::FluxConfig;

use crate::model::families::family::{Family, SigmaSpacing};
use crate::model::families::names::KohyaNames;
use crate::model::families::pipelines::PipelineNames;
use crate::model::families::transformer::{Transformer, TransformerConfig};
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::Result;
use candle_core::{DType, Device};
use double::DoubleBlock;
use embed::FluxEmbedding;
use names::KOHYA;
use pipeline::PIPELINE;
use single::SingleBlock;

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
        let config = FluxConfig::open(files)?;
        from_weights(config, depth, &files.weights(Part::Transformer, dtype, device)?, dtype, device)
    }

    /// diffusers' `FluxPipeline.__call__` gives its scheduler the levels.
    fn sigma_spacing(&self) -> SigmaSpacing {
        SigmaSpacing::Even
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
    config: FluxConfig,
    depth: Option<usize>,
    weights: &Weights,
    dtype: DType,
    device: &Device,
) -> Result<Transformer> {
    let compute = if device.is_cpu() { DType::F32 } else { dtype };
    let embedding = Box::new(FluxEmbedding::load(weights, &config, compute)?);
    Transformer::from_blocks(config.general(), embedding, depth, weights, |layer| {
        Ok(match layer.checked_sub(config.num_layers) {
            None => Box::new(DoubleBlock::load(weights, &config, layer)?),
            Some(number) => Box::new(SingleBlock::load(weights, &config, number)?),
        })
    })
}
