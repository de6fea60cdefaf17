//! Stable Diffusion 3 and 3.5: the MM-DiT (diffusers' `SD3Transformer2DModel`).
mod block;
mod config;
mod embed;
pub mod names;
pub mod original;
pub mod pipeline;

pub use config::{MmDitConfig, release};

use crate::model::families::family::{Family, SigmaSpacing};
use crate::model::families::names::KohyaNames;
use crate::model::families::pipelines::PipelineNames;
use crate::model::families::transformer::{Transformer, TransformerConfig};
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::Result;
use block::MmDitBlock;
use candle_core::{DType, Device};
use embed::MmDitEmbedding;
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
        let config = MmDitConfig::open(files)?;
        from_weights(config, depth, &files.weights(Part::Transformer, dtype, device)?, dtype, device)
    }

    fn sigma_spacing(&self) -> SigmaSpacing {
        SigmaSpacing::Trained
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
    config: MmDitConfig,
    depth: Option<usize>,
    weights: &Weights,
    dtype: DType,
    device: &Device,
) -> Result<Transformer> {
    let compute = if device.is_cpu() { DType::F32 } else { dtype };
    let embedding = Box::new(MmDitEmbedding::load(weights, &config, compute)?);
    Transformer::from_blocks(config.general(), embedding, depth, weights, |layer| {
        Ok(Box::new(MmDitBlock::load(weights, &config, layer)?))
    })
}
