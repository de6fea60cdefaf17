//! A single-stream block (diffusers' `Flux2SingleTransformerBlock`): image and text tokens go through the same layers, the
//! attention beside the MLP, into which one layer leads and out of which one. Its modulation is that of all such blocks.
//! Nothing uses the text that the last one makes.
use super::config::Flux2Config;
use super::embed::SharedModulation;
use super::names::{FUSED_INPUT, FUSED_OUTPUT};
use crate::autograd::Variable;
use crate::model::families::block::{Block, SavedActivations};
use crate::model::families::config::FamilyConfig;
use crate::model::families::flux::SINGLE_BLOCKS;
use crate::model::families::joint::{Conditioning, JointInputs, Probe, Streams};
use crate::model::families::stream_layers::{StreamModulation, normed};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::{Result as TensorResult, Tensor};
use std::ops::Range;

/// Weights of a block.
pub struct SingleBlock {
    heads: usize,
    width: usize,
    /// Its text goes into the attention and no further.
    is_last: bool,
    /// To queries, keys, values, and the MLP's two inputs.
    fused_input: Projection,
    norm_q: Tensor,
    norm_k: Tensor,
    /// From the attention's result and the MLP's hidden features, side by side.
    fused_output: Projection,
}

impl SingleBlock {
    /// Takes single-stream block `layer` from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &Flux2Config, layer: usize) -> Result<Self> {
        let prefix = format!("{SINGLE_BLOCKS}.{layer}");
        let (width, hidden, load) = (config.width(), config.hidden(), Projection::load_without_bias);
        let norm = |name: &str| weights.get(&format!("{prefix}.attn.{name}.weight"), config.attention_head_dim);
        Ok(Self {
            heads: config.num_attention_heads,
            width,
            is_last: layer + 1 == config.num_single_layers,
            fused_input: load(weights, &format!("{prefix}.{FUSED_INPUT}"), width, 3 * width + 2 * hidden)?,
            norm_q: norm("norm_q")?,
            norm_k: norm("norm_k")?,
            fused_output: load(weights, &format!("{prefix}.{FUSED_OUTPUT}"), width + hidden, width)?,
        })
    }

    /// Of the fused layer's outputs, those that are queries, keys and values: part 0, 1 and 2.
    fn part(&self, part: usize) -> Range<usize> {
        part * self.width..(part + 1) * self.width
    }
}

impl Block for SingleBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        vec![(FUSED_INPUT, &mut self.fused_input), (FUSED_OUTPUT, &mut self.fused_output)]
    }

    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe> {
        let x =
            StreamModulation::shared(SharedModulation::Single as usize, conditioning)?.norm_msa(&streams.joined()?)?;
        let [of_image, _] = streams.tokens()?;
        let queries = self.fused_input.forward_outputs(&x.window(1, of_image)?, self.part(0))?;
        let keys = self.fused_input.forward_outputs(&x, self.part(1))?;
        Probe::of(streams, conditioning, [normed(queries, Some(&self.norm_q))?, normed(keys, Some(&self.norm_k))?])
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Conditioning,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let modulation = StreamModulation::shared(SharedModulation::Single as usize, conditioning)?;
        let joint = streams.joined()?;
        let fused = self.fused_input.forward(&modulation.norm_msa(&joint)?)?;
        let queries = normed(fused.window(2, self.part(0))?, Some(&self.norm_q))?;
        let keys = normed(fused.window(2, self.part(1))?, Some(&self.norm_k))?;
        let qkv = [queries, keys, fused.window(2, self.part(2))?];
        let inputs = JointInputs::of(streams, conditioning, self.heads, qkv)?;
        let (_, outputs) = self.fused_input.sizes();
        let mut of_mlp = fused.window(2, 3 * self.width..outputs)?;
        drop(fused);
        let mut attended = attend(&inputs)?;
        if self.is_last {
            let [of_image, _] = streams.tokens()?;
            (attended, of_mlp) = (attended.window(1, of_image.clone())?, of_mlp.window(1, of_image)?);
        }
        let update = self.fused_output.forward(&ops::cat(&[attended, ops::swiglu(&of_mlp)?], 2)?)?;
        Ok((streams.updated(&joint, &update, modulation.gate_msa())?, inputs))
    }

    /// Queries and keys of both streams are of one layer.
    fn reaches_probe(&self, layer: &str, _: bool) -> bool {
        layer == FUSED_INPUT
    }

    /// The input of the norm; queries and keys before their norms and behind, values, the attention's result; SwiGLU's
    /// input; of layers with an adapter their input.
    fn saved_activations(&self) -> SavedActivations {
        let (inner, outer) = (self.fused_output.sizes().0, self.fused_input.sizes().1);
        let of_mlp = (outer - 3 * self.width) / self.width;
        let normed = usize::from(self.fused_input.is_adapted());
        let before_output = usize::from(self.fused_output.is_adapted()) * (inner / self.width);
        let inputs = 1 + normed + 6;
        let image = inputs + of_mlp + before_output;
        SavedActivations { image, text: if self.is_last { inputs } else { image } }
    }
}
