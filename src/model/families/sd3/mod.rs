//! Stable Diffusion 3 and 3.5: the MM-DiT (diffusers' `SD3Transformer2DModel`).
mod block;
mod config;
mod embed;
mod names;
mod original;
pub(super) mod pipeline;

pub use config::{MmDitConfig, release};

use crate::model::families::block::{Block, Embedding};
use crate::model::families::family::Family;
use crate::model::families::pipelines::PipelineNames;
use crate::model::weights::Weights;
use crate::system::error::Result;
use candle_core::DType;
use embed::MmDitEmbedding;
use pipeline::PIPELINE;

impl Family for MmDitConfig {
    const PIPELINE: &'static PipelineNames = &PIPELINE;

    fn embedding(&self, weights: &Weights, dtype: DType) -> Result<Box<dyn Embedding>> {
        Ok(Box::new(MmDitEmbedding::load(weights, self, dtype)?))
    }

    fn block(&self, weights: &Weights, layer: usize) -> Result<Box<dyn Block>> {
        Ok(Box::new(block::load(weights, self, layer)?))
    }
}
