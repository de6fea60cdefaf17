//! What blocks with a stream of image tokens and one of text tokens are made of: the layers from a stream into the joint
//! attention, those from there back into it, and their modulation.
use super::joint::Conditioning;
use crate::autograd::Variable;
use crate::model::projection::{LoadProjection, Projection};
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::{Result as TensorResult, Tensor, bail};
use std::ops::Range;

/// The parts, each `[batch, width]`, of the modulation that a layer makes.
pub(super) fn modulation(layer: &Projection, conditioning: &Conditioning) -> TensorResult<Vec<Variable>> {
    let (width, outer) = layer.sizes();
    let all = layer.forward(&Variable::constant(conditioning.vector.clone()))?;
    (0..outer / width).map(|part| all.window(1, part * width..(part + 1) * width)).collect()
}

/// Where the modulation of a stream comes from.
pub(super) enum ModulationSource {
    /// From a layer of the block (AdaLN).
    Layer(Projection),
    /// Blocks share it: its place in [`Conditioning::shared`].
    Shared(usize),
}

/// From a stream into the joint attention.
pub(super) struct StreamInput {
    pub(super) modulation: ModulationSource,
    pub(super) qkv: Qkv,
}

/// From the joint attention back into a stream.
pub(super) struct StreamOutput {
    pub(super) attention_out: Projection,
    pub(super) feed_forward: FeedForwardLayers,
}

/// Layers to the queries, keys and values of a stream.
pub(super) struct Qkv {
    pub(super) q: HeadsLayer,
    pub(super) k: HeadsLayer,
    pub(super) v: HeadsLayer,
}

/// A layer to what heads take, with the norm of each of these where the model has such.
pub(super) struct HeadsLayer {
    pub(super) projection: Projection,
    norm: Option<Tensor>,
}

/// An image and a text stream, normed and modulated, each with its layers.
pub(super) type JointQkv<'a> = [(&'a Variable, &'a Qkv); 2];

/// diffusers' names of an image stream's layers to queries, keys and values, and of their norms.
pub(super) const IMAGE_QKV: [&str; 5] = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];

/// Those of a text stream.
pub(super) const TEXT_QKV: [&str; 5] = ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];

/// A stream's MLP: GELU between its layers, or SwiGLU, for which the first makes the gate, too.
pub(super) struct FeedForwardLayers {
    pub(super) up: Projection,
    pub(super) down: Projection,
    pub(super) is_gated: bool,
}

impl FeedForwardLayers {
    pub(super) fn load(weights: &Weights, name: &str, width: usize) -> Result<Self> {
        Ok(Self {
            up: Projection::load(weights, &format!("{name}.net.0.proj"), width, 4 * width)?,
            down: Projection::load(weights, &format!("{name}.net.2"), 4 * width, width)?,
            is_gated: false,
        })
    }

    /// `x` plus what the layers make of it, normed and modulated.
    pub(super) fn forward(&self, x: &Variable, [shift, scale, gate]: [&Variable; 3]) -> TensorResult<Variable> {
        let is_constant = [shift, scale, gate].iter().all(|modulation| !modulation.needs_gradient());
        if let (Some(up), Some(down)) = (self.up.frozen(), self.down.frozen())
            && is_constant
            && !self.is_gated
            && ops::has_kernels(x.tensor())
        {
            let modulation = ops::Modulation { shift: shift.tensor(), scale: scale.tensor(), gate: gate.tensor() };
            return ops::feed_forward(x, modulation, up, down);
        }
        let activation = if self.is_gated { ops::swiglu } else { ops::gelu };
        let normed = ops::layer_norm_modulate(x, shift, scale)?;
        ops::gated_residual(x, &self.down.forward(&activation(&self.up.forward(&normed)?)?)?, gate)
    }

    /// Saved activations, where the modulation has an adapter or not.
    pub(super) fn saved(&self, is_modulation_adapted: bool) -> usize {
        let ((width, up), (hidden, _)) = (self.up.sizes(), self.down.sizes());
        let (input, before_activation) = (1, up / width);
        if ops::has_kernels_for(self.up.weight())
            && !self.is_gated
            && !is_modulation_adapted
            && !self.up.is_adapted()
            && !self.down.is_adapted()
        {
            return input + before_activation;
        }
        // The inputs of layers with an adapter, and what an adapted gate is multiplied with.
        let normed = usize::from(self.up.is_adapted());
        let activated = usize::from(self.down.is_adapted()) * (hidden / width);
        input + normed + before_activation + activated + usize::from(is_modulation_adapted)
    }
}

impl Qkv {
    /// `names` of q, k, v, with biases or without, and of the norms of q and k, whose heads are `normed` wide where there
    /// are such norms.
    pub(super) fn load(
        weights: &Weights,
        prefix: &str,
        names: [&str; 5],
        width: usize,
        normed: Option<usize>,
        load: LoadProjection,
    ) -> Result<Self> {
        let projection = |name: &str| load(weights, &format!("{prefix}.{name}"), width, width);
        let norm =
            |name: &str| normed.map(|head_dim| weights.get(&format!("{prefix}.{name}.weight"), head_dim)).transpose();
        let [q, k, v, norm_q, norm_k] = names;
        let (q, k, v) = (projection(q)?, projection(k)?, projection(v)?);
        Ok(Self {
            q: HeadsLayer { projection: q, norm: norm(norm_q)? },
            k: HeadsLayer { projection: k, norm: norm(norm_k)? },
            v: HeadsLayer { projection: v, norm: None },
        })
    }

    /// Queries, keys and values of both streams, each joined.
    pub(super) fn joint([(image, of_image), (text, of_text)]: JointQkv) -> TensorResult<[Variable; 3]> {
        Ok([
            HeadsLayer::join([(image, &of_image.q), (text, &of_text.q)])?,
            HeadsLayer::join([(image, &of_image.k), (text, &of_text.k)])?,
            HeadsLayer::join([(image, &of_image.v), (text, &of_text.v)])?,
        ])
    }

    /// Queries of the image, and keys of both streams, joined.
    pub(super) fn joint_probe([(image, of_image), (text, of_text)]: JointQkv) -> TensorResult<[Variable; 2]> {
        Ok([of_image.q.forward(image)?, HeadsLayer::join([(image, &of_image.k), (text, &of_text.k)])?])
    }

    /// [`Self::joint_probe`], and values of both streams, joined.
    pub(super) fn without_text_queries(streams: JointQkv) -> TensorResult<[Variable; 3]> {
        let ([queries, keys], [(image, of_image), (text, of_text)]) = (Self::joint_probe(streams)?, streams);
        Ok([queries, keys, HeadsLayer::join([(image, &of_image.v), (text, &of_text.v)])?])
    }

    /// Whether an adapter is on one of the layers.
    pub(super) fn is_adapted(&self) -> bool {
        [&self.q, &self.k, &self.v].iter().any(|layer| layer.projection.is_adapted())
    }

    /// Activations that are saved up to the attention's result, which there is none of without queries.
    pub(super) fn saved(&self, has_queries: bool) -> usize {
        let input = usize::from(self.is_adapted());
        let (queries_and_result, keys_and_values) = (2 * usize::from(has_queries), 2);
        let before_norms = if self.q.norm.is_some() { 1 + usize::from(has_queries) } else { 0 };
        input + before_norms + queries_and_result + keys_and_values
    }
}

/// RMS norm of every head of `x`, where there is a weight.
pub(super) fn normed(x: Variable, weight: Option<&Tensor>) -> TensorResult<Variable> {
    let Some(weight) = weight else { return Ok(x) };
    ops::rms_norm(&x, vec![(x.dims3()?.1, weight.clone())])
}

impl HeadsLayer {
    pub(super) fn forward(&self, x: &Variable) -> TensorResult<Variable> {
        normed(self.projection.forward(x)?, self.norm.as_ref())
    }

    /// Two streams, each through its layer, joined along the tokens.
    fn join([(image, of_image), (text, of_text)]: [(&Variable, &Self); 2]) -> TensorResult<Variable> {
        let joined = Projection::join(&[(image, &of_image.projection), (text, &of_text.projection)])?;
        let (Some(of_image), Some(of_text)) = (&of_image.norm, &of_text.norm) else { return Ok(joined) };
        ops::rms_norm(&joined, vec![(image.dims3()?.1, of_image.clone()), (text.dims3()?.1, of_text.clone())])
    }
}

impl ModulationSource {
    /// The modulation.
    pub(super) fn of(&self, conditioning: &Conditioning) -> TensorResult<StreamModulation> {
        match self {
            Self::Layer(layer) => StreamModulation::of_layer(layer, conditioning),
            Self::Shared(place) => StreamModulation::shared(*place, conditioning),
        }
    }

    /// The layer that makes it, where that is the block's.
    pub(super) fn layer(&mut self) -> Option<&mut Projection> {
        if let Self::Layer(layer) = self { Some(layer) } else { None }
    }

    /// Whether an adapter is on that layer.
    pub(super) fn is_adapted(&self) -> bool {
        matches!(self, Self::Layer(layer) if layer.is_adapted())
    }
}

impl StreamOutput {
    pub(super) fn load(weights: &Weights, width: usize, attention_out: &str, feed_forward: &str) -> Result<Self> {
        Ok(Self {
            attention_out: Projection::load(weights, attention_out, width, width)?,
            feed_forward: FeedForwardLayers::load(weights, feed_forward, width)?,
        })
    }

    /// Adds `tokens` of the joint attention's result to their stream `x`.
    pub(super) fn add_attention(
        &self,
        x: &Variable,
        attended: &Variable,
        tokens: Range<usize>,
        modulation: &StreamModulation,
    ) -> TensorResult<Variable> {
        ops::gated_residual(x, &self.attention_out.forward_window(attended, tokens)?, modulation.gate_msa())
    }

    /// Saved activations: an adapted gate saves what it is multiplied with.
    pub(super) fn saved(&self, is_modulation_adapted: bool) -> usize {
        usize::from(is_modulation_adapted) + self.feed_forward.saved(is_modulation_adapted)
    }
}

/// AdaLN's modulation of one stream, each `[batch, width]`, in diffusers' order: shift, scale and gate of the attention, of the
/// MLP and, in a block with a second attention, of that. SD3's last text has the first two, a single-stream block three.
pub(super) struct StreamModulation(Vec<Variable>);

impl StreamModulation {
    /// That which a block's own layer makes.
    pub(super) fn of_layer(layer: &Projection, conditioning: &Conditioning) -> TensorResult<Self> {
        let mut parts = modulation(layer, conditioning)?;
        if let [scale_msa, shift_msa] = &mut parts[..] {
            // diffusers' AdaLayerNormContinuous, in the last block's text, has scale before shift.
            std::mem::swap(scale_msa, shift_msa);
        }
        Ok(Self(parts))
    }

    /// That at this place of [`Conditioning::shared`].
    pub(super) fn shared(place: usize, conditioning: &Conditioning) -> TensorResult<Self> {
        let Some(parts) = conditioning.shared.get(place) else { bail!("a modulation that nobody made") };
        Ok(Self(parts.iter().cloned().map(Variable::constant).collect()))
    }

    /// The norm before the joint attention.
    pub(super) fn norm_msa(&self, x: &Variable) -> TensorResult<Variable> {
        ops::layer_norm_modulate(x, &self.0[0], &self.0[1])
    }

    pub(super) fn gate_msa(&self) -> &Variable {
        &self.0[2]
    }

    /// `shift_mlp, scale_mlp, gate_mlp`
    pub(super) fn mlp(&self) -> [&Variable; 3] {
        [&self.0[3], &self.0[4], &self.0[5]]
    }

    /// The norm before the second attention.
    pub(super) fn norm_msa2(&self, x: &Variable) -> TensorResult<Variable> {
        ops::layer_norm_modulate(x, &self.0[6], &self.0[7])
    }

    pub(super) fn gate_msa2(&self) -> &Variable {
        &self.0[8]
    }
}
