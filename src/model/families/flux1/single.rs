//! A single-stream block (diffusers' `FluxSingleTransformerBlock`): image and text tokens go through the same layers, the
//! attention beside the MLP. Nothing uses the text that the last one makes.
use super::config::FluxConfig;
use crate::autograd::Variable;
use crate::model::families::block::{Block, SavedActivations};
use crate::model::families::config::FamilyConfig;
use crate::model::families::flux::SINGLE_BLOCKS;
use crate::model::families::joint::{Conditioning, JointInputs, Probe, Streams};
use crate::model::families::stream_layers::{IMAGE_QKV, Qkv, StreamModulation};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::Result as TensorResult;

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
        Ok(Self {
            heads: config.num_attention_heads,
            is_last: layer + 1 == config.num_single_layers,
            norm: Projection::load(weights, &format!("{prefix}.norm.linear"), width, 3 * width)?,
            qkv: Qkv::load(weights, &format!("{prefix}.attn"), IMAGE_QKV, width, Some(head_dim), Projection::load)?,
            proj_mlp: Projection::load(weights, &format!("{prefix}.proj_mlp"), width, hidden)?,
            proj_out: Projection::load(weights, &format!("{prefix}.proj_out"), width + hidden, width)?,
        })
    }
}

impl Block for SingleBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        vec![
            ("attn.to_q", &mut self.qkv.q.projection),
            ("attn.to_k", &mut self.qkv.k.projection),
            ("attn.to_v", &mut self.qkv.v.projection),
            ("proj_mlp", &mut self.proj_mlp),
            ("proj_out", &mut self.proj_out),
            ("norm.linear", &mut self.norm),
        ]
    }

    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe> {
        let normed = StreamModulation::of_layer(&self.norm, conditioning)?.norm_msa(&streams.joined()?)?;
        let [of_image, _] = streams.tokens()?;
        let queries = self.qkv.q.forward(&normed.window(1, of_image)?)?;
        Probe::of(streams, conditioning, [queries, self.qkv.k.forward(&normed)?])
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Conditioning,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let modulation = StreamModulation::of_layer(&self.norm, conditioning)?;
        let joint = streams.joined()?;
        let normed = modulation.norm_msa(&joint)?;
        let qkv = [self.qkv.q.forward(&normed)?, self.qkv.k.forward(&normed)?, self.qkv.v.forward(&normed)?];
        let inputs = JointInputs::of(streams, conditioning, self.heads, qkv)?;
        let attended = attend(&inputs)?;
        let [of_image, of_text] = streams.tokens()?;
        let output = 0..if self.is_last { of_image.end } else { of_text.end };
        let hidden = ops::gelu(&self.proj_mlp.forward_window(&normed, output.clone())?)?;
        let update = self.proj_out.forward(&ops::cat(&[attended.window(1, output)?, hidden], 2)?)?;
        Ok((streams.updated(&joint, &update, modulation.gate_msa())?, inputs))
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
