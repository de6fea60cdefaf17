//! A family of denoisers: what is made of the sizes of one of its models.
use super::block::{Block, Embedding};
use super::config::FamilyConfig;
use super::pipelines::PipelineNames;
use super::transformer::{Transformer, TransformerConfig};
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::Result;
use candle_core::{DType, Device};

/// A family of denoisers, implemented by its sizes.
pub trait Family: FamilyConfig {
    /// The pipeline in the diffusers layout.
    const PIPELINE: &'static PipelineNames;

    /// Takes the weights around the blocks from `weights`, for arithmetic in `dtype`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    fn embedding(&self, weights: &Weights, dtype: DType) -> Result<Box<dyn Embedding>>;

    /// Takes block `layer`, all lists counted through, from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    fn block(&self, weights: &Weights, layer: usize) -> Result<Box<dyn Block>>;

    /// Takes a model of these sizes from `weights`, which must hold it and nothing else; its first `depth` blocks alone where
    /// that is given.
    ///
    /// Arithmetic is in f32 on the CPU, and in `dtype`, the weights', on CUDA.
    ///
    /// # Errors
    /// A tensor is missing, superfluous or of another shape.
    fn transformer(
        &self,
        depth: Option<usize>,
        weights: &Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Transformer> {
        let (config, compute) = (self.general(), if device.is_cpu() { DType::F32 } else { dtype });
        let embedding = self.embedding(weights, compute)?;
        let all = config.num_layers();
        let depth = depth.map_or(all, |depth| depth.min(all));
        let blocks = (0..depth).map(|layer| self.block(weights, layer)).collect::<Result<_>>()?;
        (depth..all).for_each(|layer| weights.ignore_all(&format!("{}.", config.block_name(layer))));
        weights.finish()?;
        Ok(Transformer { config, embedding, blocks })
    }
}

/// A family whose models are read.
#[derive(Debug)]
pub struct KnownFamily {
    /// Its pipeline in the diffusers layout.
    pub pipeline: &'static PipelineNames,
    config: fn(&ModelFiles) -> Result<TransformerConfig>,
    load: fn(&ModelFiles, Option<usize>, DType, &Device) -> Result<Transformer>,
}

impl KnownFamily {
    /// The family with such sizes.
    pub const fn of<F: Family>() -> Self {
        Self {
            pipeline: F::PIPELINE,
            config: |files| Ok(F::open(files)?.general()),
            load: |files, depth, dtype, device| {
                F::open(files)?.transformer(depth, &files.weights(Part::Transformer, dtype, device)?, dtype, device)
            },
        }
    }

    /// Reads and checks a model's sizes.
    ///
    /// # Errors
    /// A key is missing, or what is there does not make a model.
    pub fn config(&self, files: &ModelFiles) -> Result<TransformerConfig> {
        (self.config)(files)
    }

    /// Loads a model, kept in memory as `dtype`; of its blocks the first `depth`, where that is given: these serve for
    /// looking at their attention.
    ///
    /// Arithmetic is in f32 on the CPU, and in `dtype` on CUDA.
    ///
    /// # Errors
    /// As [`Self::config`]; the weights are not those of such a model and nothing else.
    pub fn load(&self, files: &ModelFiles, depth: Option<usize>, dtype: DType, device: &Device) -> Result<Transformer> {
        (self.load)(files, depth, dtype, device)
    }
}
