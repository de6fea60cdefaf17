//! A single-stream block (diffusers' `Flux2SingleTransformerBlock`): image and text tokens go through the same layers, the
//! attention beside the MLP, into which one layer leads and out of which one. Its modulation is that of all such blocks.
//! Nothing uses the text that the last one makes.
use super::config::Flux2Config;
use super::embed::Shared;
use super::names::{FUSED_INPUT, FUSED_OUTPUT, SINGLE_BLOCKS};
use super::pipeline::words;
use crate::autograd::Variable;
use crate::model::families::block::{Block, SavedActivations};
use crate::model::families::joint::{Conditioning, JointInputs, Probe, Streams};
use crate::model::families::stream_layers::normed;
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::{Result as TensorResult, Tensor};

/// Weights of a block.
pub struct SingleBlock {
    heads: usize,
    width: usize,
    /// Its text goes into the attention and no further.
    is_last: bool,
    /// To queries, keys, values, and the MLP's two inputs.
    fused_input: Projection,
    norm_q: Option<Tensor>,
    norm_k: Option<Tensor>,
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
            norm_q: Some(norm("norm_q")?),
            norm_k: Some(norm("norm_k")?),
            fused_output: load(weights, &format!("{prefix}.{FUSED_OUTPUT}"), width + hidden, width)?,
        })
    }

    /// Of the fused layer's outputs, those of queries, keys and values, before norms: part 0, 1 and 2.
    fn part(&self, fused: &Variable, part: usize) -> TensorResult<Variable> {
        fused.window(2, part * self.width..(part + 1) * self.width)
    }

    /// Queries or keys of some tokens, normed by head and turned by where they are.
    fn turned(&self, x: Variable, norm: &Option<Tensor>, conditioning: &Conditioning) -> TensorResult<Variable> {
        conditioning.turned(&normed(x.clone(), &[(&x, norm)])?)
    }
}

impl Block for SingleBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        vec![(FUSED_INPUT, &mut self.fused_input), (FUSED_OUTPUT, &mut self.fused_output)]
    }

    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe> {
        let joint = ops::cat(&[streams.image.clone(), streams.text.clone()], 1)?;
        let (_, image_tokens, _) = streams.image.dims3()?;
        let fused = self.fused_input.forward(&Shared::Single.of(conditioning)?.norm_msa(&joint)?)?;
        let queries = self.part(&fused, 0)?.window(1, 0..image_tokens)?;
        Ok(Probe {
            queries: self.turned(queries, &self.norm_q, conditioning)?,
            keys: self.turned(self.part(&fused, 1)?, &self.norm_k, conditioning)?,
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
        let modulation = Shared::Single.of(conditioning)?;
        let joint = ops::cat(&[streams.image.clone(), streams.text.clone()], 1)?;
        let ((_, image_tokens, _), (_, all, _)) = (streams.image.dims3()?, joint.dims3()?);
        let fused = self.fused_input.forward(&modulation.norm_msa(&joint)?)?;
        let inputs = JointInputs {
            queries: self.turned(self.part(&fused, 0)?, &self.norm_q, conditioning)?,
            keys: self.turned(self.part(&fused, 1)?, &self.norm_k, conditioning)?,
            values: self.part(&fused, 2)?,
            image_tokens,
            heads: self.heads,
            last_key_count: streams.last_text_count,
            words: words(streams)?,
        };
        let (_, outputs) = self.fused_input.sizes();
        let of_mlp = fused.window(2, 3 * self.width..outputs)?;
        drop(fused);
        let (attended, of_mlp) = match self.is_last {
            true => (attend(&inputs)?.window(1, 0..image_tokens)?, of_mlp.window(1, 0..image_tokens)?),
            false => (attend(&inputs)?, of_mlp),
        };
        let update = self.fused_output.forward(&ops::cat(&[attended, ops::swiglu(&of_mlp)?], 2)?)?;
        let gate = modulation.gate_msa();
        let (image, text) = if self.is_last {
            (ops::gated_residual(&streams.image, &update, gate)?, streams.text.clone())
        } else {
            let joint = ops::gated_residual(&joint, &update, gate)?;
            (joint.window(1, 0..image_tokens)?, joint.window(1, image_tokens..all)?)
        };
        Ok((Streams { image, text, last_text_count: streams.last_text_count }, inputs))
    }

    fn reaches_output(&self, _: &str) -> bool {
        true
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
