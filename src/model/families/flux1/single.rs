//! A single-stream block (diffusers' `FluxSingleTransformerBlock`): image and text tokens go through the same layers, the
//! attention beside the MLP. Nothing uses the text that the last one makes.
use super::config::FluxConfig;
use super::names::SINGLE_BLOCKS;
use super::pipeline::words;
use crate::autograd::Variable;
use crate::model::families::block::{Block, SavedActivations};
use crate::model::families::joint::{Conditioning, JointInputs, Probe, Streams};
use crate::model::families::stream_layers::{Qkv, modulation};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::{Result as TensorResult, bail};

/// The MLP's hidden features for each of a token's (`mlp_ratio`).
const MLP_RATIO: usize = 4;

/// Weights of a block.
pub struct SingleBlock {
    heads: usize,
    /// Its text goes into the attention and no further.
    is_last: bool,
    norm: Projection,
    qkv: Qkv,
    proj_mlp: Projection,
    /// From the attention's result and the MLP's hidden features, side by side.
    proj_out: Projection,
}

impl SingleBlock {
    /// Takes single-stream block `layer` from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &FluxConfig, layer: usize) -> Result<Self> {
        let prefix = format!("{SINGLE_BLOCKS}.{layer}");
        let (width, head_dim, hidden) = (config.width(), config.attention_head_dim, MLP_RATIO * config.width());
        let names = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
        Ok(Self {
            heads: config.num_attention_heads,
            is_last: layer + 1 == config.num_single_layers,
            norm: Projection::load(weights, &format!("{prefix}.norm.linear"), width, 3 * width)?,
            qkv: Qkv::load(weights, &format!("{prefix}.attn"), names, width, Some(head_dim), Projection::load)?,
            proj_mlp: Projection::load(weights, &format!("{prefix}.proj_mlp"), width, hidden)?,
            proj_out: Projection::load(weights, &format!("{prefix}.proj_out"), width + hidden, width)?,
        })
    }

    /// `shift, scale, gate`
    fn modulation(&self, conditioning: &Conditioning) -> TensorResult<[Variable; 3]> {
        match modulation(&self.norm, conditioning)?.try_into() {
            Ok(parts) => Ok(parts),
            Err(parts) => bail!("a modulation of {} parts", parts.len()),
        }
    }
}

/// Image and text tokens, one after the other.
fn joined(streams: &Streams) -> TensorResult<Variable> {
    ops::cat(&[streams.image.clone(), streams.text.clone()], 1)
}

impl Block for SingleBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        vec![
            ("attn.to_q", &mut self.qkv.q),
            ("attn.to_k", &mut self.qkv.k),
            ("attn.to_v", &mut self.qkv.v),
            ("proj_mlp", &mut self.proj_mlp),
            ("proj_out", &mut self.proj_out),
            ("norm.linear", &mut self.norm),
        ]
    }

    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe> {
        let [shift, scale, _] = self.modulation(conditioning)?;
        let normed = ops::layer_norm_modulate(&joined(streams)?, &shift, &scale)?;
        let (_, image_tokens, _) = streams.image.dims3()?;
        Ok(Probe {
            queries: conditioning.turned(&self.qkv.queries(&normed.window(1, 0..image_tokens)?)?)?,
            keys: conditioning.turned(&self.qkv.keys(&normed)?)?,
            last_key_count: streams.last_text_count,
            words: words(streams)?,
        })
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Conditioning,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let [shift, scale, gate] = self.modulation(conditioning)?;
        let joint = joined(streams)?;
        let normed = ops::layer_norm_modulate(&joint, &shift, &scale)?;
        let ((_, image_tokens, _), (_, all, _)) = (streams.image.dims3()?, joint.dims3()?);
        let inputs = JointInputs {
            queries: conditioning.turned(&self.qkv.queries(&normed)?)?,
            keys: conditioning.turned(&self.qkv.keys(&normed)?)?,
            values: self.qkv.v.forward(&normed)?,
            image_tokens,
            heads: self.heads,
            last_key_count: streams.last_text_count,
            words: words(streams)?,
        };
        let attended = attend(&inputs)?;
        let output = 0..if self.is_last { image_tokens } else { all };
        let hidden = ops::gelu(&self.proj_mlp.forward_window(&normed, output.clone())?)?;
        let update = self.proj_out.forward(&ops::cat(&[attended.window(1, output)?, hidden], 2)?)?;
        let (image, text) = if self.is_last {
            (ops::gated_residual(&streams.image, &update, &gate)?, streams.text.clone())
        } else {
            let joint = ops::gated_residual(&joint, &update, &gate)?;
            (joint.window(1, 0..image_tokens)?, joint.window(1, image_tokens..all)?)
        };
        Ok((Streams { image, text, last_text_count: streams.last_text_count }, inputs))
    }

    fn reaches_output(&self, _: &str) -> bool {
        true
    }

    /// Keys of image and text are of one layer.
    fn reaches_probe(&self, layer: &str, _: bool) -> bool {
        ["attn.to_q", "attn.to_k", "norm.linear"].contains(&layer)
    }

    /// The input of the norm, what queries, keys and values save, the MLP's features before GELU; of layers with an adapter
    /// their input, and what an adapted gate is multiplied with. Such a gate saves the last block's image stream, too, which
    /// the joint sequence is a copy of.
    fn saved_activations(&self) -> SavedActivations {
        let is_normed_saved = !self.qkv.is_adapted() && self.proj_mlp.is_adapted();
        let before_output = usize::from(self.proj_out.is_adapted()) * (1 + MLP_RATIO);
        let gated = usize::from(self.norm.is_adapted()) * if self.is_last { 2 } else { 1 };
        let inputs = 1 + self.qkv.saved(true) + usize::from(is_normed_saved);
        let image = inputs + MLP_RATIO + before_output + gated;
        SavedActivations { image, text: if self.is_last { inputs } else { image } }
    }
}
