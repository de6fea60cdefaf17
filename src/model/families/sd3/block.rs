//! One block of the MM-DiT (diffusers' `JointTransformerBlock`).
use super::config::MmDitConfig;
use crate::autograd::Variable;
use crate::model::families::block as families;
use crate::model::families::joint::{JointInputs, Probe, Streams};
use crate::model::projection::Projection;
use crate::model::text::tokenizer::CLIP_TOKENS;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::{Result as TensorResult, Tensor};

/// Weights of a block: both streams, and the second attention where the block has one.
pub struct Block {
    heads: usize,
    norm1: Projection,
    norm1_context: Projection,
    attention: JointAttention,
    second_attention: Option<SelfAttention>,
    feed_forward: FeedForward,
    /// Absent in the last block, which has no text output.
    context: Option<ContextOut>,
}

struct JointAttention {
    image: Qkv,
    text: Qkv,
    out: Projection,
}

struct SelfAttention {
    qkv: Qkv,
    out: Projection,
}

/// The second half of the text stream.
struct ContextOut {
    attention_out: Projection,
    feed_forward: FeedForward,
}

struct Qkv {
    q: Projection,
    k: Projection,
    v: Projection,
    norm_q: Option<Tensor>,
    norm_k: Option<Tensor>,
}

struct FeedForward {
    up: Projection,
    down: Projection,
}

impl FeedForward {
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

impl JointAttention {
    /// Queries of both streams, joined.
    fn queries(&self, image: &Variable, text: &Variable) -> TensorResult<Variable> {
        let joined = Projection::join(&[(image, &self.image.q), (text, &self.text.q)])?;
        normed(joined, &[(image, &self.image.norm_q), (text, &self.text.norm_q)])
    }

    /// Keys of both streams, joined.
    fn keys(&self, image: &Variable, text: &Variable) -> TensorResult<Variable> {
        let joined = Projection::join(&[(image, &self.image.k), (text, &self.text.k)])?;
        normed(joined, &[(image, &self.image.norm_k), (text, &self.text.norm_k)])
    }

    /// Values of both streams, joined.
    fn values(&self, image: &Variable, text: &Variable) -> TensorResult<Variable> {
        Projection::join(&[(image, &self.image.v), (text, &self.text.v)])
    }
}

impl Block {
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
        let square = |name: String| Projection::load(weights, &name, width, width);
        let second_attention = if dual {
            let attn2 = format!("{prefix}.attn2");
            let qkv = Qkv::load(weights, config, &attn2, image_names)?;
            Some(SelfAttention { qkv, out: square(format!("{attn2}.to_out.0"))? })
        } else {
            None
        };
        let context = if last {
            None
        } else {
            Some(ContextOut {
                attention_out: square(format!("{attn}.to_add_out"))?,
                feed_forward: FeedForward::load(weights, &format!("{prefix}.ff_context"), width)?,
            })
        };
        let modulation = |name: &str, parts: usize| {
            Projection::load(weights, &format!("{prefix}.{name}.linear"), width, parts * width)
        };
        Ok(Self {
            heads: config.num_attention_heads,
            norm1: modulation("norm1", if dual { 9 } else { 6 })?,
            norm1_context: modulation("norm1_context", if last { 2 } else { 6 })?,
            attention: JointAttention {
                image: Qkv::load(weights, config, &attn, image_names)?,
                text: Qkv::load(weights, config, &attn, text_names)?,
                out: square(format!("{attn}.to_out.0"))?,
            },
            second_attention,
            feed_forward: FeedForward::load(weights, &format!("{prefix}.ff"), width)?,
            context,
        })
    }

    /// AdaLN's modulation of both streams; `conditioning` is `silu` of the time and pooled text embedding.
    fn modulations(&self, conditioning: &Tensor) -> TensorResult<(Modulation, Modulation)> {
        let conditioning = Variable::constant(conditioning.clone());
        let split = |projection: &Projection| {
            let (width, outer) = projection.sizes();
            let all = projection.forward(&conditioning)?;
            let parts = (0..outer / width).map(|part| all.window(1, part * width..(part + 1) * width));
            parts.collect::<TensorResult<Vec<_>>>()
        };
        let text = split(&self.norm1_context)?;
        let text = match (self.context.is_some(), &text[..]) {
            // diffusers' AdaLayerNormContinuous has scale before shift.
            (false, [scale_msa, shift_msa]) => vec![shift_msa.clone(), scale_msa.clone()],
            _ => text,
        };
        Ok((Modulation(split(&self.norm1)?), Modulation(text)))
    }
}

impl families::Block for Block {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        let mut all: Vec<(&'static str, &mut Projection)> = vec![
            ("attn.to_q", &mut self.attention.image.q),
            ("attn.to_k", &mut self.attention.image.k),
            ("attn.to_v", &mut self.attention.image.v),
            ("attn.to_out.0", &mut self.attention.out),
            ("attn.add_q_proj", &mut self.attention.text.q),
            ("attn.add_k_proj", &mut self.attention.text.k),
            ("attn.add_v_proj", &mut self.attention.text.v),
            ("ff.net.0.proj", &mut self.feed_forward.up),
            ("ff.net.2", &mut self.feed_forward.down),
            ("norm1.linear", &mut self.norm1),
            ("norm1_context.linear", &mut self.norm1_context),
        ];
        if let Some(attention) = &mut self.second_attention {
            all.push(("attn2.to_q", &mut attention.qkv.q));
            all.push(("attn2.to_k", &mut attention.qkv.k));
            all.push(("attn2.to_v", &mut attention.qkv.v));
            all.push(("attn2.to_out.0", &mut attention.out));
        }
        if let Some(context) = &mut self.context {
            all.push(("attn.to_add_out", &mut context.attention_out));
            all.push(("ff_context.net.0.proj", &mut context.feed_forward.up));
            all.push(("ff_context.net.2", &mut context.feed_forward.down));
        }
        all
    }

    fn probe(&self, streams: &Streams, conditioning: &Tensor) -> TensorResult<Probe> {
        let (for_image, for_text) = self.modulations(conditioning)?;
        let image = ops::layer_norm_modulate(&streams.image, for_image.shift_msa(), for_image.scale_msa())?;
        let text = ops::layer_norm_modulate(&streams.text, for_text.shift_msa(), for_text.scale_msa())?;
        Ok(Probe {
            queries: self.attention.image.queries(&image)?,
            keys: self.attention.keys(&image, &text)?,
            last_key_count: streams.last_text_count,
            words: CLIP_TOKENS,
        })
    }

    /// The last block leaves the text stream as it was.
    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Tensor,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let (for_image, for_text) = self.modulations(conditioning)?;
        let (_, tokens, _) = streams.image.dims3()?;
        let image = ops::layer_norm_modulate(&streams.image, for_image.shift_msa(), for_image.scale_msa())?;
        let text = ops::layer_norm_modulate(&streams.text, for_text.shift_msa(), for_text.scale_msa())?;
        let inputs = JointInputs {
            queries: match &self.context {
                Some(_) => self.attention.queries(&image, &text)?,
                None => self.attention.image.queries(&image)?,
            },
            keys: self.attention.keys(&image, &text)?,
            values: self.attention.values(&image, &text)?,
            image_tokens: tokens,
            heads: self.heads,
            last_key_count: streams.last_text_count,
            words: CLIP_TOKENS,
        };
        let attended = attend(&inputs)?;

        let update = self.attention.out.forward_window(&attended, 0..tokens)?;
        let mut out = ops::gated_residual(&streams.image, &update, for_image.gate_msa())?;
        if let Some(second) = &self.second_attention {
            let normed = ops::layer_norm_modulate(&streams.image, for_image.shift_msa2(), for_image.scale_msa2())?;
            let (q, k) = (second.qkv.queries(&normed)?, second.qkv.keys(&normed)?);
            let attended = ops::attention(&q, &k, &second.qkv.v.forward(&normed)?, self.heads, 1)?;
            out = ops::gated_residual(&out, &second.out.forward(&attended)?, for_image.gate_msa2())?;
        }
        let image = self.feed_forward.forward(&out, for_image.mlp())?;

        let text = match &self.context {
            None => streams.text.clone(),
            Some(context) => {
                let (_, text_tokens, _) = streams.text.dims3()?;
                let update = context.attention_out.forward_window(&attended, tokens..tokens + text_tokens)?;
                let out = ops::gated_residual(&streams.text, &update, for_text.gate_msa())?;
                context.feed_forward.forward(&out, for_text.mlp())?
            }
        };
        Ok((Streams { image, text, last_text_count: streams.last_text_count }, inputs))
    }

    /// Nothing uses the text queries of the last block.
    fn reaches_output(&self, layer: &str) -> bool {
        self.context.is_some() || layer != "attn.add_q_proj"
    }

    fn reaches_probe(&self, layer: &str, image_keys: bool) -> bool {
        ["attn.to_q", "attn.add_k_proj", "norm1.linear", "norm1_context.linear"].contains(&layer)
            || (image_keys && layer == "attn.to_k")
    }
}

/// AdaLN's modulation of one stream, each `[batch, width]`, in diffusers' order: shift, scale and gate of the attention, of the
/// MLP and, in a block with a second attention, of that. The last block's text has the first two.
struct Modulation(Vec<Variable>);

impl Modulation {
    fn shift_msa(&self) -> &Variable {
        &self.0[0]
    }

    fn scale_msa(&self) -> &Variable {
        &self.0[1]
    }

    fn gate_msa(&self) -> &Variable {
        &self.0[2]
    }

    /// `shift_mlp, scale_mlp, gate_mlp`
    fn mlp(&self) -> [&Variable; 3] {
        [&self.0[3], &self.0[4], &self.0[5]]
    }

    fn shift_msa2(&self) -> &Variable {
        &self.0[6]
    }

    fn scale_msa2(&self) -> &Variable {
        &self.0[7]
    }

    fn gate_msa2(&self) -> &Variable {
        &self.0[8]
    }
}
