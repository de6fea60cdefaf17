//! One block of the MM-DiT (diffusers' `JointTransformerBlock`).
use super::config::MmDitConfig;
use crate::autograd::Variable;
use crate::model::families::block::{Block, SavedActivations};
use crate::model::families::config::FamilyConfig;
use crate::model::families::joint::{Conditioning, JointInputs, Probe, Streams};
use crate::model::families::stream_layers::{IMAGE_QKV, Qkv, StreamInput, StreamOutput, TEXT_QKV};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::{Error, Result};
use candle_core::Result as TensorResult;

/// Weights of a block: both streams, and the image's second attention where the block has one.
pub struct MmDitBlock {
    heads: usize,
    image: StreamInput,
    image_output: StreamOutput,
    text: StreamInput,
    /// Absent in the last block, which leaves the text as it was.
    text_output: Option<StreamOutput>,
    second_attention: Option<SelfAttention>,
}

struct SelfAttention {
    qkv: Qkv,
    out: Projection,
}

impl MmDitBlock {
    /// Takes block `layer` from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &MmDitConfig, layer: usize) -> Result<Self> {
        let prefix = format!("transformer_blocks.{layer}");
        let attn = format!("{prefix}.attn");
        let width = config.width();
        let normed = config.qk_norm.is_some().then_some(config.attention_head_dim);
        let last = config.is_last(layer);
        let dual = config.dual_attention_layers.contains(&layer);
        let input = |norm1: &str, parts: usize, names| {
            Ok::<_, Error>(StreamInput {
                norm1: Projection::load(weights, &format!("{prefix}.{norm1}.linear"), width, parts * width)?,
                qkv: Qkv::load(weights, &attn, names, width, normed, Projection::load)?,
            })
        };
        let output = |attention_out: &str, feed_forward: &str| {
            StreamOutput::load(weights, width, &format!("{attn}.{attention_out}"), &format!("{prefix}.{feed_forward}"))
        };
        let second_attention = || {
            let attn2 = format!("{prefix}.attn2");
            Ok::<_, Error>(SelfAttention {
                qkv: Qkv::load(weights, &attn2, IMAGE_QKV, width, normed, Projection::load)?,
                out: Projection::load(weights, &format!("{attn2}.to_out.0"), width, width)?,
            })
        };
        Ok(Self {
            heads: config.num_attention_heads,
            // First what not every block has: its absence says best which block a file is wrong about.
            second_attention: dual.then(second_attention).transpose()?,
            text_output: (!last).then(|| output("to_add_out", "ff_context")).transpose()?,
            image: input("norm1", if dual { 9 } else { 6 }, IMAGE_QKV)?,
            image_output: output("to_out.0", "ff")?,
            text: input("norm1_context", if last { 2 } else { 6 }, TEXT_QKV)?,
        })
    }
}

impl Block for MmDitBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        let mut all: Vec<(&'static str, &mut Projection)> = vec![
            ("attn.to_q", &mut self.image.qkv.q),
            ("attn.to_k", &mut self.image.qkv.k),
            ("attn.to_v", &mut self.image.qkv.v),
            ("attn.to_out.0", &mut self.image_output.attention_out),
            ("attn.add_q_proj", &mut self.text.qkv.q),
            ("attn.add_k_proj", &mut self.text.qkv.k),
            ("attn.add_v_proj", &mut self.text.qkv.v),
            ("ff.net.0.proj", &mut self.image_output.feed_forward.up),
            ("ff.net.2", &mut self.image_output.feed_forward.down),
            ("norm1.linear", &mut self.image.norm1),
            ("norm1_context.linear", &mut self.text.norm1),
        ];
        if let Some(attention) = &mut self.second_attention {
            all.push(("attn2.to_q", &mut attention.qkv.q));
            all.push(("attn2.to_k", &mut attention.qkv.k));
            all.push(("attn2.to_v", &mut attention.qkv.v));
            all.push(("attn2.to_out.0", &mut attention.out));
        }
        if let Some(text) = &mut self.text_output {
            all.push(("attn.to_add_out", &mut text.attention_out));
            all.push(("ff_context.net.0.proj", &mut text.feed_forward.up));
            all.push(("ff_context.net.2", &mut text.feed_forward.down));
        }
        all
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
        let qkv = match &self.text_output {
            Some(_) => Qkv::joint(layers)?,
            None => [self.image.qkv.queries(&image)?, Qkv::joint_keys(layers)?, Qkv::joint_values(layers)?],
        };
        let inputs = JointInputs::of(streams, conditioning, self.heads, qkv)?;
        let attended = attend(&inputs)?;

        let [of_image, of_text] = streams.tokens()?;
        let output = &self.image_output;
        let mut image = output.add_attention(&streams.image, &attended, of_image, &for_image)?;
        if let Some(second) = &self.second_attention {
            let normed = for_image.norm_msa2(&streams.image)?;
            let (q, k) = (second.qkv.queries(&normed)?, second.qkv.keys(&normed)?);
            let attended = ops::attention(&q, &k, &second.qkv.v.forward(&normed)?, self.heads, 1)?;
            image = ops::gated_residual(&image, &second.out.forward(&attended)?, for_image.gate_msa2())?;
        }
        let image = output.feed_forward.forward(&image, for_image.mlp())?;

        let text = match &self.text_output {
            None => streams.text.clone(),
            Some(output) => output.forward(&streams.text, &attended, of_text, &for_text)?,
        };
        Ok((Streams { image, text, last_text_count: streams.last_text_count }, inputs))
    }

    /// Nothing uses the text queries of the last block.
    fn reaches_output(&self, layer: &str) -> bool {
        self.text_output.is_some() || layer != "attn.add_q_proj"
    }

    fn reaches_probe(&self, layer: &str, image_keys: bool) -> bool {
        ["attn.to_q", "attn.add_k_proj", "norm1.linear", "norm1_context.linear"].contains(&layer)
            || (image_keys && layer == "attn.to_k")
    }

    /// In each stream the input of its norms, and what its layers save. The second attention's gate, where it is adapted,
    /// saves the stream before it, too.
    fn saved_activations(&self) -> SavedActivations {
        let (norm, norm_context) = (self.image.norm1.is_adapted(), self.text.norm1.is_adapted());
        let second = |second: &SelfAttention| 2 * usize::from(norm) + second.qkv.saved(true);
        let image = self.image.qkv.saved(true) + self.second_attention.as_ref().map_or(0, second);
        let text = self.text.qkv.saved(self.text_output.is_some());
        SavedActivations {
            image: 1 + image + self.image_output.saved(norm),
            text: 1 + text + self.text_output.as_ref().map_or(0, |output| output.saved(norm_context)),
        }
    }
}
