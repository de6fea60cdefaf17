//! FLUX.1, dev and schnell (diffusers' `FluxTransformer2DModel`).
mod config;
mod double;
mod embed;
mod names;
mod original;
pub(super) mod pipeline;
mod single;

pub use config::FluxConfig;

use crate::model::families::block::{Block, Embedding};
use crate::model::families::family::Family;
use crate::model::families::pipelines::PipelineNames;
use crate::model::weights::Weights;
use crate::system::error::Result;
use candle_core::DType;
use embed::FluxEmbedding;
use pipeline::PIPELINE;
use single::SingleBlock;

impl Family for FluxConfig {
    const PIPELINE: &'static PipelineNames = &PIPELINE;

    fn embedding(&self, weights: &Weights, dtype: DType) -> Result<Box<dyn Embedding>> {
        Ok(Box::new(FluxEmbedding::load(weights, self, dtype)?))
    }

    fn block(&self, weights: &Weights, layer: usize) -> Result<Box<dyn Block>> {
        Ok(match layer.checked_sub(self.num_layers) {
            None => Box::new(double::load(weights, self, layer)?),
            Some(number) => Box::new(SingleBlock::load(weights, self, number)?),
        })
    }
}
