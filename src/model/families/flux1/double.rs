//! A double-stream block (diffusers' `FluxTransformerBlock`): image and text have layers of their own around the joint
//! attention.
use super::config::FluxConfig;
use crate::autograd::Variable;
use crate::model::families::block::{Block, SavedActivations};
use crate::model::families::config::FamilyConfig;
use crate::model::families::flux::DOUBLE_BLOCKS;
use crate::model::families::joint::{Conditioning, JointInputs, Probe, Streams};
use crate::model::families::stream_layers::{IMAGE_QKV, Qkv, StreamInput, StreamOutput, TEXT_QKV};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::system::error::{Error, Result};
use candle_core::Result as TensorResult;

/// Weights of a block: both streams.
pub struct DoubleBlock {
    heads: usize,
    image: StreamInput,
    image_output: StreamOutput,
    text: StreamInput,
    text_output: StreamOutput,
}

impl DoubleBlock {
    /// Takes double-stream block `layer` from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &FluxConfig, layer: usize) -> Result<Self> {
        let prefix = format!("{DOUBLE_BLOCKS}.{layer}");
        let attn = format!("{prefix}.attn");
        let (width, head_dim) = (config.width(), config.attention_head_dim);
        let input = |norm1: &str, names| {
            Ok::<_, Error>(StreamInput {
                norm1: Projection::load(weights, &format!("{prefix}.{norm1}.linear"), width, 6 * width)?,
                qkv: Qkv::load(weights, &attn, names, width, Some(head_dim), Projection::load)?,
            })
        };
        let output = |attention_out: &str, feed_forward: &str| {
            StreamOutput::load(weights, width, &format!("{attn}.{attention_out}"), &format!("{prefix}.{feed_forward}"))
        };
        Ok(Self {
            heads: config.num_attention_heads,
            image: input("norm1", IMAGE_QKV)?,
            image_output: output("to_out.0", "ff")?,
            text: input("norm1_context", TEXT_QKV)?,
            text_output: output("to_add_out", "ff_context")?,
        })
    }
}

impl Block for DoubleBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        vec![
            ("attn.to_q", &mut self.image.qkv.q),
            ("attn.to_k", &mut self.image.qkv.k),
            ("attn.to_v", &mut self.image.qkv.v),
            ("attn.to_out.0", &mut self.image_output.attention_out),
            ("attn.add_q_proj", &mut self.text.qkv.q),
            ("attn.add_k_proj", &mut self.text.qkv.k),
            ("attn.add_v_proj", &mut self.text.qkv.v),
            ("attn.to_add_out", &mut self.text_output.attention_out),
            ("ff.net.0.proj", &mut self.image_output.feed_forward.up),
            ("ff.net.2", &mut self.image_output.feed_forward.down),
            ("ff_context.net.0.proj", &mut self.text_output.feed_forward.up),
            ("ff_context.net.2", &mut self.text_output.feed_forward.down),
            ("norm1.linear", &mut self.image.norm1),
            ("norm1_context.linear", &mut self.text.norm1),
        ]
    }

    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe> {
        let image = self.image.modulation(conditioning)?.norm_msa(&streams.image)?;
        let text = self.text.modulation(conditioning)?.norm_msa(&streams.text)?;
        let layers = [(&image, &self.image.qkv), (&text, &self.text.qkv)];
        Probe::of(streams, conditioning, Qkv::joint_probe(layers)?)
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Conditioning,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let (for_image, for_text) = (self.image.modulation(conditioning)?, self.text.modulation(conditioning)?);
        let (image, text) = (for_image.norm_msa(&streams.image)?, for_text.norm_msa(&streams.text)?);
        let layers = [(&image, &self.image.qkv), (&text, &self.text.qkv)];
        let inputs = JointInputs::of(streams, conditioning, self.heads, Qkv::joint(layers)?)?;
        let attended = attend(&inputs)?;
        let [of_image, of_text] = streams.tokens()?;
        let image = self.image_output.forward(&streams.image, &attended, of_image, &for_image)?;
        let text = self.text_output.forward(&streams.text, &attended, of_text, &for_text)?;
        Ok((Streams { image, text, last_text_count: streams.last_text_count }, inputs))
    }

    /// A single-stream block follows, for which the text matters.
    fn reaches_output(&self, _: &str) -> bool {
        true
    }

    fn reaches_probe(&self, layer: &str, image_keys: bool) -> bool {
        ["attn.to_q", "attn.add_k_proj", "norm1.linear", "norm1_context.linear"].contains(&layer)
            || (image_keys && layer == "attn.to_k")
    }

    /// In each stream the input of its norms, and what its layers save; turning saves nothing.
    fn saved_activations(&self) -> SavedActivations {
        let (norm, norm_context) = (self.image.norm1.is_adapted(), self.text.norm1.is_adapted());
        SavedActivations {
            image: 1 + self.image.qkv.saved(true) + self.image_output.saved(norm),
            text: 1 + self.text.qkv.saved(true) + self.text_output.saved(norm_context),
        }
    }
}
