//! The MM-DiT of Stable Diffusion 3 and 3.5 (diffusers' `SD3Transformer2DModel`), differentiable in its adapters.
mod block;
mod blur;
mod config;
mod embed;
mod probe;

pub use block::{Block, JointInputs, Probe, Streams};
pub use blur::Blur;
pub use config::MmDitConfig;
pub use embed::{Embedded, Embedding};
pub use probe::{image_to_text_logits, mean, mean_logits, mean_probability};

use crate::autograd::Variable;
use crate::model::adapters::lora::Adapter;
use crate::model::text::TextEmbedding;
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::ops::LowRank;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

pub struct MmDit {
    pub config: MmDitConfig,
    pub embedding: Embedding,
    /// The first of the model's blocks; all, unless it was loaded otherwise.
    pub blocks: Vec<Block>,
}

impl MmDit {
    /// Loads the transformer of a pipeline, kept in memory as `dtype`; of its blocks only so many, where `depth` says so.
    pub fn load(files: &ModelFiles, depth: Option<usize>, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_weights(
            MmDitConfig::open(files)?,
            depth,
            &files.weights(Part::Transformer, dtype, device)?,
            dtype,
            device,
        )
    }

    /// Takes a model of these sizes from `weights`, which must hold it and nothing else; its first `depth` blocks alone
    /// where that is given, which serve for looking at their attention.
    ///
    /// Arithmetic is in f32 on the CPU, and in the weights' type on CUDA.
    pub fn from_weights(
        config: MmDitConfig,
        depth: Option<usize>,
        weights: &Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let compute = if device.is_cpu() { DType::F32 } else { dtype };
        let embedding = Embedding::load(weights, &config, compute)?;
        let depth = depth.map_or(config.num_layers, |depth| depth.min(config.num_layers));
        let blocks = (0..depth).map(|layer| Block::load(weights, &config, layer)).collect::<Result<Vec<_>>>()?;
        (depth..config.num_layers).for_each(|layer| weights.ignore_all(&format!("transformer_blocks.{layer}.")));
        weights.finish()?;
        Ok(Self { config, embedding, blocks })
    }

    /// Names and sizes (inputs, outputs) of all layers that an adapter can sit on, as `transformer_blocks.0.attn.to_q`.
    pub fn adaptable(&mut self) -> Vec<(String, (usize, usize))> {
        let mut all = vec![];
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            for (name, projection) in block.projections() {
                all.push((format!("transformer_blocks.{layer}.{name}"), projection.sizes()));
            }
        }
        all
    }

    /// Puts adapters on the layers they name; a name that the model does not have is an error.
    pub fn attach(&mut self, adapter: &Adapter) -> Result<()> {
        self.attach_low_rank(&adapter.iter().map(|(name, lora)| (name.clone(), lora.constant())).collect())
    }

    /// [`Self::attach`] of adapters that gradients may be wanted of.
    pub fn attach_low_rank(&mut self, adapter: &BTreeMap<String, LowRank>) -> Result<()> {
        let mut left: std::collections::BTreeSet<&str> = adapter.keys().map(String::as_str).collect();
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            for (name, projection) in block.projections() {
                let name = format!("transformer_blocks.{layer}.{name}");
                if let Some(low_rank) = adapter.get(&name) {
                    projection.attach(&name, low_rank)?;
                    left.remove(name.as_str());
                }
            }
        }
        for layer in self.blocks.len()..self.config.num_layers {
            left.retain(|name| !name.starts_with(&format!("transformer_blocks.{layer}.")));
        }
        match left.first() {
            None => Ok(()),
            Some(name) => Err(Error::Failed(format!(
                "LoRA of {name}, and {} in all, fit no layer of this model ({} blocks)",
                left.len(),
                self.config.num_layers
            ))),
        }
    }

    /// Takes all adapters off.
    pub fn detach(&mut self) {
        for block in &mut self.blocks {
            block.projections().into_iter().for_each(|(_, projection)| projection.detach());
        }
    }

    /// # Errors
    /// `Error::Usage` if there is no block `layer`.
    pub fn check_block(&self, layer: usize) -> Result<()> {
        let blocks = self.blocks.len();
        match layer < blocks {
            true => Ok(()),
            false => Err(Error::Usage(format!("block {layer}: the model has {blocks}, counted from 0"))),
        }
    }

    /// The velocity `[batch, channels, h, w]` in f32, with the attention of one block blurred where wanted; see
    /// [`Embedding::embed`] for the inputs.
    ///
    /// # Errors
    /// `Error::Usage` if there is no such block to blur; not all blocks were loaded.
    pub fn forward(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &TextEmbedding,
        blur: Option<Blur>,
    ) -> Result<Tensor> {
        blur.map_or(Ok(()), |blur| self.check_block(blur.layer))?;
        if self.blocks.len() < self.config.num_layers {
            let (loaded, blocks) = (self.blocks.len(), self.config.num_layers);
            return Err(Error::Failed(format!("only {loaded} of the model's {blocks} blocks are loaded")));
        }
        let Embedded { mut streams, conditioning, grid } = self.embedding.embed(latents, timestep, text)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let attend = |inputs: &JointInputs| match blur {
                Some(blur) if blur.layer == layer => inputs.attend_blurred(grid, blur.sigma).map(Variable::from),
                _ => inputs.attend(),
            };
            streams = block.forward_with(&streams, &conditioning, attend)?.0;
        }
        Ok(self.embedding.finish(&streams.image, &conditioning, grid)?.into_tensor())
    }

    /// Queries and keys of block `layer`: runs the blocks below it, and of that block its q and k alone.
    pub fn probe(&self, embedded: &Embedded, layer: usize) -> Result<Probe> {
        let mut streams = embedded.streams.clone();
        for block in &self.blocks[..layer] {
            streams = block.forward(&streams, &embedded.conditioning)?.0;
        }
        Ok(self.blocks[layer].probe(&streams, &embedded.conditioning)?)
    }

    /// The same of each of the ascending `layers`, in one pass that ends at the last.
    pub fn probes(&self, embedded: &Embedded, layers: &[usize]) -> Result<Vec<Probe>> {
        let mut probes = Vec::with_capacity(layers.len());
        self.probe_each(embedded, layers, |_, probe| {
            probes.push(probe);
            Ok(())
        })?;
        Ok(probes)
    }

    /// Calls `visit` with what goes into the joint attention of each block, in one pass through all.
    pub fn inspect_each(
        &self,
        embedded: &Embedded,
        mut visit: impl FnMut(usize, &JointInputs) -> Result<()>,
    ) -> Result<()> {
        let mut streams = embedded.streams.clone();
        for (layer, block) in self.blocks.iter().enumerate() {
            let (output, inputs) = block.forward_with(&streams, &embedded.conditioning, JointInputs::attend)?;
            visit(layer, &inputs)?;
            streams = output;
        }
        Ok(())
    }

    /// Calls `visit` with the image tokens that leave each of the ascending `layers`, `[batch, image tokens, width]`, in
    /// one pass that ends at the last.
    pub fn image_tokens_each(
        &self,
        embedded: &Embedded,
        layers: &[usize],
        mut visit: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let Some(&last) = layers.last() else { return Ok(()) };
        let mut streams = embedded.streams.clone();
        for (layer, block) in self.blocks[..=last].iter().enumerate() {
            streams = block.forward(&streams, &embedded.conditioning)?.0;
            if layers.contains(&layer) {
                visit(layer, streams.image.tensor())?;
            }
        }
        Ok(())
    }

    /// Calls `visit` with the queries and keys of each of the ascending `layers`, in one pass that ends at the last.
    pub fn probe_each(
        &self,
        embedded: &Embedded,
        layers: &[usize],
        mut visit: impl FnMut(usize, Probe) -> Result<()>,
    ) -> Result<()> {
        let Some((&last, others)) = layers.split_last() else { return Ok(()) };
        let mut streams = embedded.streams.clone();
        for (layer, block) in self.blocks[..last].iter().enumerate() {
            let (output, inputs) = block.forward(&streams, &embedded.conditioning)?;
            if others.contains(&layer) {
                visit(layer, inputs.probe()?)?;
            }
            streams = output;
        }
        visit(last, self.blocks[last].probe(&streams, &embedded.conditioning)?)
    }
}
