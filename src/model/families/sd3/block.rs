//! One block of the MM-DiT (diffusers' `JointTransformerBlock`).
use super::config::MmDitConfig;
use crate::autograd::Variable;
use crate::model::families::block::{Block, SavedActivations};
use crate::model::families::joint::{JointInputs, Probe, Streams};
use crate::model::projection::Projection;
use crate::model::text::tokenizer::CLIP_TOKENS;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::{Error, Result};
use candle_core::{Result as TensorResult, Tensor};
use std::ops::Range;

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

/// From a stream into the joint attention.
struct StreamInput {
    norm1: Projection,
    qkv: Qkv,
}

/// From the joint attention back into a stream.
struct StreamOutput {
    attention_out: Projection,
    feed_forward: FeedForwardLayers,
}

struct SelfAttention {
    qkv: Qkv,
    out: Projection,
}

struct Qkv {
    q: Projection,
    k: Projection,
    v: Projection,
    norm_q: Option<Tensor>,
    norm_k: Option<Tensor>,
}

struct FeedForwardLayers {
    up: Projection,
    down: Projection,
}

impl FeedForwardLayers {
    fn load(weights: &Weights, name: &str, width: usize) -> Result<Self> {
        Ok(Self {
            up: Projection::load(weights, &format!("{name}.net.0.proj"), width, 4 * width)?,
            down: Projection::load(weights, &format!("{name}.net.2"), 4 * width, width)?,
        })
    }

    /// `x` plus what the layers make of it, normed and modulated.
    fn forward(&self, x: &Variable, [shift, scale, gate]: [&Variable; 3]) -> TensorResult<Variable> {
        let is_constant = [shift, scale, gate].iter().all(|modulation| !modulation.needs_gradient());
        if let (Some(up), Some(down)) = (self.up.frozen(), self.down.frozen())
            && is_constant
            && ops::has_kernels(x.tensor())
        {
            let modulation = ops::Modulation { shift: shift.tensor(), scale: scale.tensor(), gate: gate.tensor() };
            return ops::feed_forward(x, modulation, up, down);
        }
        let normed = ops::layer_norm_modulate(x, shift, scale)?;
        ops::gated_residual(x, &self.down.forward(&ops::gelu(&self.up.forward(&normed)?)?)?, gate)
    }

    /// Saved activations, where the modulation has an adapter or not.
    fn saved(&self, is_modulation_adapted: bool) -> usize {
        let (inner, outer) = self.up.sizes();
        let (input, before_gelu) = (1, outer / inner);
        // Arithmetic is in f32 on the CPU, and in the weights' type on a GPU.
        let has_kernels = self.up.weight().device().is_cpu() || ops::has_kernels(self.up.weight());
        if has_kernels && !is_modulation_adapted && !self.up.is_adapted() && !self.down.is_adapted() {
            return input + before_gelu;
        }
        // The inputs of layers with an adapter, and what an adapted gate is multiplied with.
        let normed = usize::from(self.up.is_adapted());
        let after_gelu = usize::from(self.down.is_adapted()) * before_gelu;
        input + normed + before_gelu + after_gelu + usize::from(is_modulation_adapted)
    }
}

impl Qkv {
    /// `names` of q, k, v and of the norms of q and k.
    fn load(weights: &Weights, config: &MmDitConfig, prefix: &str, names: [&str; 5]) -> Result<Self> {
        let width = config.width();
        let projection = |name: &str| Projection::load(weights, &format!("{prefix}.{name}"), width, width);
        let norm = |name: &str| match config.qk_norm {
            Some(_) => weights.get(&format!("{prefix}.{name}.weight"), config.attention_head_dim).map(Some),
            None => Ok(None),
        };
        let [q, k, v, norm_q, norm_k] = names;
        Ok(Self {
            q: projection(q)?,
            k: projection(k)?,
            v: projection(v)?,
            norm_q: norm(norm_q)?,
            norm_k: norm(norm_k)?,
        })
    }

    /// Queries of one stream.
    fn queries(&self, x: &Variable) -> TensorResult<Variable> {
        normed(self.q.forward(x)?, &[(x, &self.norm_q)])
    }

    /// Keys of one stream.
    fn keys(&self, x: &Variable) -> TensorResult<Variable> {
        normed(self.k.forward(x)?, &[(x, &self.norm_k)])
    }

    /// Activations that are saved up to the attention's result, which there is none of without queries.
    fn saved(&self, has_queries: bool) -> usize {
        let input = usize::from([&self.q, &self.k, &self.v].iter().any(|layer| layer.is_adapted()));
        let (queries_and_result, keys_and_values) = (2 * usize::from(has_queries), 2);
        let before_norms = if self.norm_q.is_some() { 1 + usize::from(has_queries) } else { 0 };
        input + before_norms + queries_and_result + keys_and_values
    }
}

/// RMS norm of every head of `x`, which is made of some streams one after the other, each with its weight.
fn normed(x: Variable, streams: &[(&Variable, &Option<Tensor>)]) -> TensorResult<Variable> {
    let mut weights = vec![];
    for (stream, weight) in streams {
        let Some(weight) = weight else { return Ok(x) };
        weights.push((stream.dims3()?.1, weight.clone()));
    }
    ops::rms_norm(&x, weights)
}

impl StreamInput {
    /// AdaLN's modulation of the stream; `conditioning` is `silu` of the time and pooled text embedding.
    fn modulation(&self, conditioning: &Tensor) -> TensorResult<StreamModulation> {
        let (width, outer) = self.norm1.sizes();
        let all = self.norm1.forward(&Variable::constant(conditioning.clone()))?;
        let parts = (0..outer / width).map(|part| all.window(1, part * width..(part + 1) * width));
        let mut parts = parts.collect::<TensorResult<Vec<_>>>()?;
        if let [scale_msa, shift_msa] = &mut parts[..] {
            // diffusers' AdaLayerNormContinuous, in the last block's text, has scale before shift.
            std::mem::swap(scale_msa, shift_msa);
        }
        Ok(StreamModulation(parts))
    }
}

impl StreamOutput {
    fn load(weights: &Weights, width: usize, attention_out: &str, feed_forward: &str) -> Result<Self> {
        Ok(Self {
            attention_out: Projection::load(weights, attention_out, width, width)?,
            feed_forward: FeedForwardLayers::load(weights, feed_forward, width)?,
        })
    }

    /// Adds `tokens` of the joint attention's result to their stream `x`.
    fn add_attention(
        &self,
        x: &Variable,
        attended: &Variable,
        tokens: Range<usize>,
        modulation: &StreamModulation,
    ) -> TensorResult<Variable> {
        ops::gated_residual(x, &self.attention_out.forward_window(attended, tokens)?, modulation.gate_msa())
    }

    /// Saved activations: an adapted gate saves what it is multiplied with.
    fn saved(&self, is_modulation_adapted: bool) -> usize {
        usize::from(is_modulation_adapted) + self.feed_forward.saved(is_modulation_adapted)
    }
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
        let last = config.is_last(layer);
        let dual = config.dual_attention_layers.contains(&layer);
        let image_names = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
        let text_names = ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];
        let input = |norm1: &str, parts: usize, names| {
            Ok::<_, Error>(StreamInput {
                norm1: Projection::load(weights, &format!("{prefix}.{norm1}.linear"), width, parts * width)?,
                qkv: Qkv::load(weights, config, &attn, names)?,
            })
        };
        let output = |attention_out: &str, feed_forward: &str| {
            StreamOutput::load(weights, width, &format!("{attn}.{attention_out}"), &format!("{prefix}.{feed_forward}"))
        };
        let second_attention = || {
            let attn2 = format!("{prefix}.attn2");
            Ok::<_, Error>(SelfAttention {
                qkv: Qkv::load(weights, config, &attn2, image_names)?,
                out: Projection::load(weights, &format!("{attn2}.to_out.0"), width, width)?,
            })
        };
        Ok(Self {
            heads: config.num_attention_heads,
            // First what not every block has: its absence says best which block a file is wrong about.
            second_attention: dual.then(second_attention).transpose()?,
            text_output: (!last).then(|| output("to_add_out", "ff_context")).transpose()?,
            image: input("norm1", if dual { 9 } else { 6 }, image_names)?,
            image_output: output("to_out.0", "ff")?,
            text: input("norm1_context", if last { 2 } else { 6 }, text_names)?,
        })
    }

    /// Queries of both streams, joined.
    fn queries(&self, image: &Variable, text: &Variable) -> TensorResult<Variable> {
        let (of_image, of_text) = (&self.image.qkv, &self.text.qkv);
        let joined = Projection::join(&[(image, &of_image.q), (text, &of_text.q)])?;
        normed(joined, &[(image, &of_image.norm_q), (text, &of_text.norm_q)])
    }

    /// Keys of both streams, joined.
    fn keys(&self, image: &Variable, text: &Variable) -> TensorResult<Variable> {
        let (of_image, of_text) = (&self.image.qkv, &self.text.qkv);
        let joined = Projection::join(&[(image, &of_image.k), (text, &of_text.k)])?;
        normed(joined, &[(image, &of_image.norm_k), (text, &of_text.norm_k)])
    }

    /// Values of both streams, joined.
    fn values(&self, image: &Variable, text: &Variable) -> TensorResult<Variable> {
        Projection::join(&[(image, &self.image.qkv.v), (text, &self.text.qkv.v)])
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

    fn probe(&self, streams: &Streams, conditioning: &Tensor) -> TensorResult<Probe> {
        let image = self.image.modulation(conditioning)?.norm_msa(&streams.image)?;
        let text = self.text.modulation(conditioning)?.norm_msa(&streams.text)?;
        Ok(Probe {
            queries: self.image.qkv.queries(&image)?,
            keys: self.keys(&image, &text)?,
            last_key_count: streams.last_text_count,
            words: CLIP_TOKENS,
        })
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Tensor,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let (for_image, for_text) = (self.image.modulation(conditioning)?, self.text.modulation(conditioning)?);
        let (image, text) = (for_image.norm_msa(&streams.image)?, for_text.norm_msa(&streams.text)?);
        let ((_, image_tokens, _), (_, text_tokens, _)) = (image.dims3()?, text.dims3()?);
        let inputs = JointInputs {
            queries: match &self.text_output {
                Some(_) => self.queries(&image, &text)?,
                None => self.image.qkv.queries(&image)?,
            },
            keys: self.keys(&image, &text)?,
            values: self.values(&image, &text)?,
            image_tokens,
            heads: self.heads,
            last_key_count: streams.last_text_count,
            words: CLIP_TOKENS,
        };
        let attended = attend(&inputs)?;

        let output = &self.image_output;
        let mut image = output.add_attention(&streams.image, &attended, 0..image_tokens, &for_image)?;
        if let Some(second) = &self.second_attention {
            let normed = for_image.norm_msa2(&streams.image)?;
            let (q, k) = (second.qkv.queries(&normed)?, second.qkv.keys(&normed)?);
            let attended = ops::attention(&q, &k, &second.qkv.v.forward(&normed)?, self.heads, 1)?;
            image = ops::gated_residual(&image, &second.out.forward(&attended)?, for_image.gate_msa2())?;
        }
        let image = output.feed_forward.forward(&image, for_image.mlp())?;

        let text = match &self.text_output {
            None => streams.text.clone(),
            Some(output) => {
                let tokens = image_tokens..image_tokens + text_tokens;
                let text = output.add_attention(&streams.text, &attended, tokens, &for_text)?;
                output.feed_forward.forward(&text, for_text.mlp())?
            }
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

/// AdaLN's modulation of one stream, each `[batch, width]`, in diffusers' order: shift, scale and gate of the attention, of the
/// MLP and, in a block with a second attention, of that. The last block's text has the first two.
struct StreamModulation(Vec<Variable>);

impl StreamModulation {
    /// The norm before the joint attention.
    fn norm_msa(&self, x: &Variable) -> TensorResult<Variable> {
        ops::layer_norm_modulate(x, &self.0[0], &self.0[1])
    }

    fn gate_msa(&self) -> &Variable {
        &self.0[2]
    }

    /// `shift_mlp, scale_mlp, gate_mlp`
    fn mlp(&self) -> [&Variable; 3] {
        [&self.0[3], &self.0[4], &self.0[5]]
    }

    /// The norm before the second attention.
    fn norm_msa2(&self, x: &Variable) -> TensorResult<Variable> {
        ops::layer_norm_modulate(x, &self.0[6], &self.0[7])
    }

    fn gate_msa2(&self) -> &Variable {
        &self.0[8]
    }
}
