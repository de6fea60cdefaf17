//! A double-stream block (diffusers' `Flux2TransformerBlock`): image and text have layers of their own around the joint
//! attention. Its modulation is that of all such blocks.
use super::config::Flux2Config;
use super::embed::Shared;
use super::feed_forward::SwiGluLayers;
use crate::autograd::Variable;
use crate::model::families::block::{Block, SavedActivations};
use crate::model::families::config::FamilyConfig;
use crate::model::families::flux::DOUBLE_BLOCKS;
use crate::model::families::joint::{Conditioning, JointInputs, Probe, Streams};
use crate::model::families::stream_layers::{IMAGE_QKV, Qkv, StreamModulation, TEXT_QKV};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::{Error, Result};
use candle_core::Result as TensorResult;
use std::ops::Range;

/// Weights of a block: both streams.
pub struct DoubleBlock {
    heads: usize,
    image: Stream,
    text: Stream,
}

/// A stream's layers around the joint attention.
struct Stream {
    qkv: Qkv,
    attention_out: Projection,
    feed_forward: SwiGluLayers,
}

impl Stream {
    /// Adds `tokens` of the joint attention's result to the stream `x`, and what the MLP makes of that.
    fn forward(
        &self,
        x: &Variable,
        attended: &Variable,
        tokens: Range<usize>,
        modulation: &StreamModulation,
    ) -> TensorResult<Variable> {
        let update = self.attention_out.forward_window(attended, tokens)?;
        let x = ops::gated_residual(x, &update, modulation.gate_msa())?;
        self.feed_forward.forward(&x, modulation.mlp())
    }

    /// Saved activations: the input of the norm, and what the layers save.
    fn saved(&self) -> usize {
        1 + self.qkv.saved(true) + self.feed_forward.saved()
    }
}

impl DoubleBlock {
    /// Takes double-stream block `layer` from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &Flux2Config, layer: usize) -> Result<Self> {
        let prefix = format!("{DOUBLE_BLOCKS}.{layer}");
        let attn = format!("{prefix}.attn");
        let (width, head_dim, load) = (config.width(), config.attention_head_dim, Projection::load_without_bias);
        let stream = |names, attention_out: &str, feed_forward: &str| {
            Ok::<_, Error>(Stream {
                qkv: Qkv::load(weights, &attn, names, width, Some(head_dim), load)?,
                attention_out: load(weights, &format!("{attn}.{attention_out}"), width, width)?,
                feed_forward: SwiGluLayers::load(weights, &format!("{prefix}.{feed_forward}"), width, config.hidden())?,
            })
        };
        Ok(Self {
            heads: config.num_attention_heads,
            image: stream(IMAGE_QKV, "to_out.0", "ff")?,
            text: stream(TEXT_QKV, "to_add_out", "ff_context")?,
        })
    }
}

impl Block for DoubleBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        vec![
            ("attn.to_q", &mut self.image.qkv.q),
            ("attn.to_k", &mut self.image.qkv.k),
            ("attn.to_v", &mut self.image.qkv.v),
            ("attn.to_out.0", &mut self.image.attention_out),
            ("attn.add_q_proj", &mut self.text.qkv.q),
            ("attn.add_k_proj", &mut self.text.qkv.k),
            ("attn.add_v_proj", &mut self.text.qkv.v),
            ("attn.to_add_out", &mut self.text.attention_out),
            ("ff.linear_in", &mut self.image.feed_forward.linear_in),
            ("ff.linear_out", &mut self.image.feed_forward.linear_out),
            ("ff_context.linear_in", &mut self.text.feed_forward.linear_in),
            ("ff_context.linear_out", &mut self.text.feed_forward.linear_out),
        ]
    }

    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe> {
        let image = Shared::Image.of(conditioning)?.norm_msa(&streams.image)?;
        let text = Shared::Text.of(conditioning)?.norm_msa(&streams.text)?;
        let layers = [(&image, &self.image.qkv), (&text, &self.text.qkv)];
        Probe::of(streams, conditioning, Qkv::joint_probe(layers)?)
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Conditioning,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let (for_image, for_text) = (Shared::Image.of(conditioning)?, Shared::Text.of(conditioning)?);
        let (image, text) = (for_image.norm_msa(&streams.image)?, for_text.norm_msa(&streams.text)?);
        let layers = [(&image, &self.image.qkv), (&text, &self.text.qkv)];
        let inputs = JointInputs::of(streams, conditioning, self.heads, Qkv::joint(layers)?)?;
        let attended = attend(&inputs)?;
        let [of_image, of_text] = streams.tokens()?;
        let image = self.image.forward(&streams.image, &attended, of_image, &for_image)?;
        let text = self.text.forward(&streams.text, &attended, of_text, &for_text)?;
        Ok((Streams { image, text, last_text_count: streams.last_text_count }, inputs))
    }

    /// A single-stream block follows, for which the text matters.
    fn reaches_output(&self, _: &str) -> bool {
        true
    }

    fn reaches_probe(&self, layer: &str, image_keys: bool) -> bool {
        ["attn.to_q", "attn.add_k_proj"].contains(&layer) || (image_keys && layer == "attn.to_k")
    }

    /// Turning saves nothing, nor do gates without an adapter.
    fn saved_activations(&self) -> SavedActivations {
        SavedActivations { image: self.image.saved(), text: self.text.saved() }
    }
}
