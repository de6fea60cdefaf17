//! Stable Diffusion 3 and 3.5: the MM-DiT (diffusers' `SD3Transformer2DModel`).
mod block;
mod config;
mod embed;
mod names;

pub use config::{MmDitConfig, release};

use crate::model::families::block as denoiser;
use crate::model::families::family::Family;
use crate::model::families::joint::{Embedded, JointInputs, Probe, Streams};
use crate::model::families::names::KohyaNames;
use crate::model::families::transformer::{Transformer, TransformerConfig};
use crate::model::projection::Projection;
use crate::model::text::TextEmbedding;
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::Result;
use block::Block;
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use embed::Embedding;
use names::{ADAPTER_TARGETS, BLOCKS, KOHYA};

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

    fn pipeline_class(&self) -> &'static str {
        "StableDiffusion3Pipeline"
    }

    fn config(&self, files: &ModelFiles) -> Result<TransformerConfig> {
        Ok(MmDitConfig::open(files)?.general())
    }

    fn load(&self, files: &ModelFiles, depth: Option<usize>, dtype: DType, device: &Device) -> Result<Transformer> {
        let config = MmDitConfig::open(files)?;
        from_weights(config, depth, &files.weights(Part::Transformer, dtype, device)?, dtype, device)
    }

    fn adapter_targets(&self) -> &'static [&'static str] {
        &ADAPTER_TARGETS
    }

    fn default_targets(&self) -> usize {
        4
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
    let embedding = Box::new(Embedding::load(weights, &config, compute)?);
    let depth = depth.map_or(config.num_layers, |depth| depth.min(config.num_layers));
    let load = |layer: usize| -> Result<Box<dyn denoiser::Block>> {
        Ok(Box::new(MmDitBlock { block: Block::load(weights, &config, layer)?, is_last: config.is_last(layer) }))
    };
    let blocks = (0..depth).map(load).collect::<Result<Vec<_>>>()?;
    (depth..config.num_layers).for_each(|layer| weights.ignore_all(&format!("{BLOCKS}.{layer}.")));
    weights.finish()?;
    Ok(Transformer { config: config.general(), embedding, blocks })
}

impl denoiser::Embedding for Embedding {
    fn embed(&self, latents: &Tensor, timestep: &Tensor, text: &TextEmbedding) -> TensorResult<Embedded> {
        Embedding::embed(self, latents, timestep, text)
    }

    fn finish(&self, image: &Tensor, conditioning: &Tensor, grid: (usize, usize)) -> TensorResult<Tensor> {
        Embedding::finish(self, image, conditioning, grid)
    }
}

struct MmDitBlock {
    block: Block,
    /// It has no text output.
    is_last: bool,
}

impl denoiser::Block for MmDitBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        self.block.projections()
    }

    fn probe(&self, streams: &Streams, conditioning: &Tensor) -> TensorResult<Probe> {
        self.block.probe(streams, conditioning)
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Tensor,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Tensor>,
    ) -> TensorResult<(Streams, JointInputs)> {
        self.block.forward_with(streams, conditioning, attend)
    }

    /// Nothing uses the text queries of the last block.
    fn reaches_output(&self, layer: &str) -> bool {
        !(self.is_last && layer == "attn.add_q_proj")
    }

    fn reaches_probe(&self, layer: &str, image_keys: bool) -> bool {
        ["attn.to_q", "attn.add_k_proj", "norm1.linear", "norm1_context.linear"].contains(&layer)
            || (image_keys && layer == "attn.to_k")
    }
}
