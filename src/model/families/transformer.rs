//! A denoiser of any family: its blocks in order, with what runs through them.
use super::block::{Block, Embedding, SavedActivations};
use super::blur::Blur;
use super::joint::{Embedded, JointInputs, Probe, Streams};
use super::names::Release;
use crate::autograd::Variable;
use crate::model::adapters::adapter::{Adapter, Adapters, TrainedAdapters};
use crate::model::projection::Projection;
use crate::model::text::TextEmbedding;
use crate::model::vae::VaeConfig;
use crate::system::error::{Error, Result};
use candle_core::{DType, Tensor};
use std::collections::BTreeSet;

/// Sizes of a denoiser that what is around it depends on; keys of diffusers' `config.json` where it has such.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Lists of blocks, in the order that they are run in: the name of each and how many it holds.
    pub block_lists: Vec<(&'static str, usize)>,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of an attention head.
    pub attention_head_dim: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Side of the square of latents that an image token stands for.
    pub patch_size: usize,
    /// Most image tokens along a side.
    pub max_grid: usize,
    /// Features of a text token.
    pub joint_attention_dim: usize,
    /// Features of the pooled text; 0 where the model takes none.
    pub pooled_projection_dim: usize,
    /// The guidance scale of diffusers' pipeline call, where none is given.
    pub usual_guidance_scale: f64,
    /// How the model is guided.
    pub guidance: Guidance,
    /// Which released model this is by its sizes, for kohya's metadata.
    pub release: Option<Release>,
}

/// How a model is guided by a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guidance {
    /// Away from what it makes of a negative prompt.
    TwoPasses,
    /// It is told the guidance scale, and runs once.
    Embedded,
    /// Not at all: it runs once, whatever the scale.
    None,
}

impl Guidance {
    /// The scale that two passes are guided by, 1 where there is one pass; and the scale that the model is told.
    pub fn scales(self, scale: f64) -> (f64, Option<f64>) {
        match self {
            Self::TwoPasses => (scale, None),
            Self::Embedded => (1.0, Some(scale)),
            Self::None => (1.0, None),
        }
    }
}

impl TransformerConfig {
    /// Blocks of all lists.
    pub fn num_layers(&self) -> usize {
        self.block_lists.iter().map(|(_, count)| count).sum()
    }

    /// Features of a token.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Name of block `layer`, all lists counted through: that of its list and its number there.
    pub fn block_name(&self, layer: usize) -> String {
        let mut index = layer;
        for (list, count) in &self.block_lists {
            if index < *count {
                return format!("{list}.{index}");
            }
            index -= count;
        }
        format!("block {layer}")
    }

    /// # Errors
    /// `Error::Usage` if there is no block `layer`; `what` asks for it.
    pub fn check_block(&self, what: &str, layer: usize) -> Result<()> {
        let blocks = self.num_layers();
        match layer < blocks {
            true => Ok(()),
            false => Err(Error::Usage(format!("{what} {layer}: the model has {blocks} blocks, counted from 0"))),
        }
    }

    /// (channels, height, width) of the latents of a square image of `size` pixels.
    ///
    /// # Errors
    /// `Error::Usage` if that does not divide into latents and tokens, or is more than the model has positions for.
    pub fn latent_shape(&self, vae: &VaeConfig, size: usize) -> Result<(usize, usize, usize)> {
        let token = vae.pixels_per_latent() * self.patch_size;
        let largest = token.saturating_mul(self.max_grid);
        if size == 0 || !size.is_multiple_of(token) || size > largest {
            let most = if self.max_grid == usize::MAX { String::new() } else { format!(", at most {largest}") };
            return Err(Error::Usage(format!(
                "{size} pixels do not suit the model: expected a multiple of {token}{most}"
            )));
        }
        let side = size / vae.pixels_per_latent();
        Ok((self.in_channels, side, side))
    }

    /// Image tokens of latents of this shape, (channels, height, width).
    pub fn image_tokens(&self, (_, height, width): (usize, usize, usize)) -> usize {
        let (rows, columns) = self.grid(height, width);
        rows * columns
    }

    /// Rows and columns of the image tokens of latents of so many rows and columns.
    pub fn grid(&self, height: usize, width: usize) -> (usize, usize) {
        (height / self.patch_size, width / self.patch_size)
    }
}

/// A denoiser, frozen but for its adapters.
pub struct Transformer {
    /// Sizes.
    pub config: TransformerConfig,
    /// Into tokens and out of them.
    pub embedding: Box<dyn Embedding>,
    /// The first of the model's blocks; all, unless it was loaded otherwise.
    pub blocks: Vec<Box<dyn Block>>,
}

/// A layer that an adapter can sit on.
pub struct AdaptableLayer<'a> {
    /// In diffusers' names: that of its block, and its own within the block.
    pub name: String,
    /// Its block, counted from 0.
    pub block: usize,
    /// Its name within the block.
    pub within: &'static str,
    /// The layer.
    pub projection: &'a mut Projection,
}

impl Transformer {
    /// All layers that an adapter can sit on.
    pub fn adaptable(&mut self) -> Vec<AdaptableLayer<'_>> {
        let mut all = vec![];
        for (block, of_block) in self.blocks.iter_mut().enumerate() {
            let prefix = self.config.block_name(block);
            let layer =
                |(within, projection)| AdaptableLayer { name: format!("{prefix}.{within}"), block, within, projection };
            all.extend(of_block.projections().into_iter().map(layer));
        }
        all
    }

    /// Bytes of the largest frozen weight of a block, written out as `dtype`, of those that are kept otherwise: there is one
    /// at a time.
    pub fn largest_written_out(&mut self, dtype: DType) -> u64 {
        let written_out = |layer: AdaptableLayer| {
            let (weight, (inner, outer)) = (layer.projection.weight(), layer.projection.sizes());
            let is_kept_so = !weight.is_quantized() && weight.dtype() == dtype;
            if is_kept_so { 0 } else { (inner * outer * dtype.size_in_bytes()) as u64 }
        };
        self.adaptable().into_iter().map(written_out).max().unwrap_or(0)
    }

    /// Puts adapters on the layers they name; a name that the model does not have is an error.
    pub fn attach(&mut self, adapters: &Adapters) -> Result<()> {
        self.attach_each(adapters, |_, adapter| {
            adapter.parameters().into_iter().map(|tensor| Variable::constant(tensor.clone())).collect()
        })
    }

    /// [`Self::attach`] of adapters that gradients may be wanted of.
    pub fn attach_trained(&mut self, trained: &TrainedAdapters) -> Result<()> {
        self.attach_each(&trained.adapters, |name, _| trained.parameters.get(name).cloned().unwrap_or_default())
    }

    fn attach_each(
        &mut self,
        adapters: &Adapters,
        parameters: impl Fn(&str, &dyn Adapter) -> Vec<Variable>,
    ) -> Result<()> {
        let mut left: BTreeSet<&str> = adapters.keys().map(String::as_str).collect();
        for AdaptableLayer { name, projection, .. } in self.adaptable() {
            if let Some(adapter) = adapters.get(&name) {
                projection.attach(&name, adapter.as_ref(), parameters(&name, adapter.as_ref()))?;
                left.remove(name.as_str());
            }
        }
        let (loaded, blocks) = (self.blocks.len(), self.config.num_layers());
        for prefix in (loaded..blocks).map(|layer| format!("{}.", self.config.block_name(layer))) {
            left.retain(|name| !name.starts_with(&prefix));
        }
        match left.first() {
            None => Ok(()),
            Some(name) => Err(Error::Failed(format!(
                "adapter of {name}, and {} in all, fit no layer of this model ({blocks} blocks)",
                left.len()
            ))),
        }
    }

    /// Takes all adapters off.
    pub fn detach(&mut self) {
        self.adaptable().into_iter().for_each(|layer| layer.projection.detach());
    }

    /// What each of the loaded blocks saves for the backward pass.
    pub fn saved_activations(&self) -> Vec<SavedActivations> {
        self.blocks.iter().map(|block| block.saved_activations()).collect()
    }

    /// # Errors
    /// `Error::Usage` if there is no block `layer`.
    pub fn check_block(&self, layer: usize) -> Result<()> {
        self.config.check_block("block", layer)
    }

    /// The velocity `[batch, channels, h, w]` in f32, with the attention of one block blurred where wanted; see
    /// [`Embedding::embed_prompt`] for the inputs.
    ///
    /// # Errors
    /// `Error::Usage` if there is no such block to blur; not all blocks were loaded.
    pub fn forward(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &TextEmbedding,
        blur: Option<Blur>,
        guidance_scale: Option<f64>,
    ) -> Result<Tensor> {
        blur.map_or(Ok(()), |blur| self.check_block(blur.layer))?;
        let (loaded, blocks) = (self.blocks.len(), self.config.num_layers());
        if loaded < blocks {
            return Err(Error::Failed(format!("only {loaded} of the model's {blocks} blocks are loaded")));
        }
        let Embedded { mut streams, conditioning, grid } =
            self.embedding.embed_prompt(latents, timestep, text, None, guidance_scale)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut attend = |inputs: &JointInputs| match blur {
                Some(blur) if blur.layer == layer => inputs.attend_blurred(grid, blur.sigma).map(Variable::from),
                _ => inputs.attend(),
            };
            streams = block.forward_with(&streams, &conditioning, &mut attend)?.0;
        }
        Ok(self.embedding.finish(&streams.image, &conditioning, grid)?.into_tensor())
    }

    /// Queries and keys of each of the ascending `layers`, in one pass that ends at the last.
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
        self.run(embedded, self.blocks.len(), |layer, _, inputs| visit(layer, inputs)).map(drop)
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
        let visit = |layer, output: &Streams, _: &JointInputs| match layers.contains(&layer) {
            true => visit(layer, output.image.tensor()),
            false => Ok(()),
        };
        self.run(embedded, last + 1, visit).map(drop)
    }

    /// Calls `visit` with the queries and keys of each of the ascending `layers`, in one pass that ends at the last.
    pub fn probe_each(
        &self,
        embedded: &Embedded,
        layers: &[usize],
        mut visit: impl FnMut(usize, Probe) -> Result<()>,
    ) -> Result<()> {
        let Some((&last, others)) = layers.split_last() else { return Ok(()) };
        let streams = self.run(embedded, last, |layer, _, inputs| match others.contains(&layer) {
            true => visit(layer, inputs.probe()?),
            false => Ok(()),
        })?;
        visit(last, self.blocks[last].probe(&streams, &embedded.conditioning)?)
    }

    /// Runs the first `count` blocks, and calls `visit` with what leaves each, and what went into its joint attention.
    fn run(
        &self,
        embedded: &Embedded,
        count: usize,
        mut visit: impl FnMut(usize, &Streams, &JointInputs) -> Result<()>,
    ) -> Result<Streams> {
        let mut streams = embedded.streams.clone();
        for (layer, block) in self.blocks[..count].iter().enumerate() {
            let (output, inputs) = block.forward(&streams, &embedded.conditioning)?;
            visit(layer, &output, &inputs)?;
            streams = output;
        }
        Ok(streams)
    }
}
