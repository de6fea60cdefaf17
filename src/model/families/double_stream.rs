//! A block with a stream of image tokens and one of text tokens, each with layers of its own around the joint attention:
//! diffusers' `JointTransformerBlock`, `FluxTransformerBlock` and `Flux2TransformerBlock`.
use super::block::{Block, SavedActivations};
use super::joint::{Conditioning, JointInputs, Probe, Streams};
use super::stream_layers::{Qkv, StreamInput, StreamOutput};
use crate::autograd::Variable;
use crate::model::projection::Projection;
use crate::ops;
use candle_core::Result as TensorResult;

/// Weights of a block: both streams, and the image's second attention where the block has one.
pub(super) struct DoubleStreamBlock {
    pub(super) heads: usize,
    pub(super) image: StreamInput,
    pub(super) image_output: StreamOutput,
    pub(super) text: StreamInput,
    /// Absent in a last block, which leaves the text as it was.
    pub(super) text_output: Option<StreamOutput>,
    pub(super) second_attention: Option<SelfAttention>,
    /// What [`Block::projections`] lists.
    pub(super) projections: fn(&mut Self) -> Vec<(&'static str, &mut Projection)>,
}

/// The image's attention to itself, beside the joint one.
pub(super) struct SelfAttention {
    pub(super) qkv: Qkv,
    pub(super) out: Projection,
}

impl DoubleStreamBlock {
    /// The layers that an adapter can sit on, as FLUX's have them; `mlps` are the names of those of image and text.
    pub(super) fn flux_projections(&mut self, mlps: [&'static str; 4]) -> Vec<(&'static str, &mut Projection)> {
        let mut all = vec![
            ("attn.to_q", &mut self.image.qkv.q.projection),
            ("attn.to_k", &mut self.image.qkv.k.projection),
            ("attn.to_v", &mut self.image.qkv.v.projection),
            ("attn.to_out.0", &mut self.image_output.attention_out),
            ("attn.add_q_proj", &mut self.text.qkv.q.projection),
            ("attn.add_k_proj", &mut self.text.qkv.k.projection),
            ("attn.add_v_proj", &mut self.text.qkv.v.projection),
        ];
        let mut layers = vec![&mut self.image_output.feed_forward.up, &mut self.image_output.feed_forward.down];
        if let Some(text) = &mut self.text_output {
            all.push(("attn.to_add_out", &mut text.attention_out));
            layers.extend([&mut text.feed_forward.up, &mut text.feed_forward.down]);
        }
        all.extend(mlps.into_iter().zip(layers));
        all.extend(self.image.modulation.layer().map(|layer| ("norm1.linear", layer)));
        all.extend(self.text.modulation.layer().map(|layer| ("norm1_context.linear", layer)));
        all
    }
}

impl Block for DoubleStreamBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        (self.projections)(self)
    }

    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe> {
        let image = self.image.modulation.of(conditioning)?.norm_msa(&streams.image)?;
        let text = self.text.modulation.of(conditioning)?.norm_msa(&streams.text)?;
        let layers = [(&image, &self.image.qkv), (&text, &self.text.qkv)];
        Probe::of(streams, conditioning, Qkv::joint_probe(layers)?)
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Conditioning,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let (for_image, for_text) = (self.image.modulation.of(conditioning)?, self.text.modulation.of(conditioning)?);
        let (image, text) = (for_image.norm_msa(&streams.image)?, for_text.norm_msa(&streams.text)?);
        let layers = [(&image, &self.image.qkv), (&text, &self.text.qkv)];
        let qkv = match &self.text_output {
            Some(_) => Qkv::joint(layers)?,
            None => Qkv::without_text_queries(layers)?,
        };
        let inputs = JointInputs::of(streams, conditioning, self.heads, qkv)?;
        let attended = attend(&inputs)?;

        let [of_image, of_text] = streams.tokens()?;
        let output = &self.image_output;
        let mut image = output.add_attention(&streams.image, &attended, of_image, &for_image)?;
        if let Some(second) = &self.second_attention {
            let normed = for_image.norm_msa2(&streams.image)?;
            let (q, k) = (second.qkv.q.forward(&normed)?, second.qkv.k.forward(&normed)?);
            let attended = ops::attention(&q, &k, &second.qkv.v.forward(&normed)?, self.heads, 1)?;
            image = ops::gated_residual(&image, &second.out.forward(&attended)?, for_image.gate_msa2())?;
        }
        let image = output.feed_forward.forward(&image, for_image.mlp())?;

        let text = match &self.text_output {
            None => streams.text.clone(),
            Some(output) => {
                let text = output.add_attention(&streams.text, &attended, of_text, &for_text)?;
                output.feed_forward.forward(&text, for_text.mlp())?
            }
        };
        Ok((Streams { image, text, last_text_count: streams.last_text_count }, inputs))
    }

    /// Nothing uses the text queries of a block that leaves the text as it was.
    fn reaches_output(&self, layer: &str) -> bool {
        self.text_output.is_some() || layer != "attn.add_q_proj"
    }

    fn reaches_probe(&self, layer: &str, image_keys: bool) -> bool {
        ["attn.to_q", "attn.add_k_proj", "norm1.linear", "norm1_context.linear"].contains(&layer)
            || (image_keys && layer == "attn.to_k")
    }

    /// In each stream the input of its norms, and what its layers save; turning saves nothing. The second attention's gate,
    /// where it is adapted, saves the stream before it, too.
    fn saved_activations(&self) -> SavedActivations {
        let (norm, norm_context) = (self.image.modulation.is_adapted(), self.text.modulation.is_adapted());
        let second = |second: &SelfAttention| 2 * usize::from(norm) + second.qkv.saved(true);
        let image = self.image.qkv.saved(true) + self.second_attention.as_ref().map_or(0, second);
        let text = self.text.qkv.saved(self.text_output.is_some());
        SavedActivations {
            image: 1 + image + self.image_output.saved(norm),
            text: 1 + text + self.text_output.as_ref().map_or(0, |output| output.saved(norm_context)),
        }
    }
}
