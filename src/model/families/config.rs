//! A family's sizes, as its files have them, and the denoiser that is made of them.
use super::block::{Block, Embedding};
use super::transformer::{Transformer, TransformerConfig};
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::{Weights, sizes};
use crate::system::error::Result;
use candle_core::{DType, Device};
use serde::de::DeserializeOwned;
use std::path::Path;

/// Sizes of a family's denoiser; the fields are the keys of `transformer/config.json`.
pub trait FamilyConfig: DeserializeOwned {
    /// Refuses sizes that do not make a model, naming the `file` that they came from.
    ///
    /// # Errors
    /// Such sizes.
    fn checked(self, file: &Path) -> Result<Self>;

    /// The sizes as all families have them.
    fn general(&self) -> TransformerConfig;

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

    /// Features of a token.
    fn width(&self) -> usize {
        self.general().width()
    }

    /// Reads and checks a model's configuration.
    ///
    /// # Errors
    /// A key is missing, or what is there does not make a model.
    fn open(files: &ModelFiles) -> Result<Self> {
        files.config::<Self>(Part::Transformer)?.checked(&files.config_path(Part::Transformer))
    }

    /// [`super::Family::load`].
    ///
    /// # Errors
    /// As there.
    fn load(files: &ModelFiles, depth: Option<usize>, dtype: DType, device: &Device) -> Result<Transformer> {
        Self::open(files)?.transformer(depth, &files.weights(Part::Transformer, dtype, device)?, dtype, device)
    }

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

/// Refuses a size that is 0 or larger than any denoiser's, so that products of two stay whole numbers.
pub(super) fn check_sizes(file: &Path, named: &[(&str, usize)]) -> Result<()> {
    sizes::check_up_to(1 << 16, file, named)
}
