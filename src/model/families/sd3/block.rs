//! One block of the MM-DiT (diffusers' `JointTransformerBlock`).
use super::config::MmDitConfig;
use crate::model::families::joint::{JointInputs, Probe, Streams};
use crate::model::projection::Projection;
use crate::model::text::tokenizer::CLIP_TOKENS;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::{Result as TensorResult, Tensor};

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
    head_dim: usize,
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

    /// `x` plus what the layers make of it, normed and modulated by shift, scale and gate.
    fn forward(&self, x: &Tensor, [shift, scale, gate]: [&Tensor; 3]) -> TensorResult<Tensor> {
        if let (Some(up), Some(down)) = (self.up.frozen(), self.down.frozen()) {
            return ops::feed_forward(x, [shift, scale, gate], up, down);
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
            head_dim: config.attention_head_dim,
        })
    }

    /// RMS norm of every head on its own.
    fn normed(&self, x: Tensor, weight: &Option<Tensor>) -> TensorResult<Tensor> {
        let Some(weight) = weight else { return Ok(x) };
        let (batch, tokens, width) = x.dims3()?;
        let heads = x.reshape((batch, tokens, width / self.head_dim, self.head_dim))?;
        ops::rms_norm(&heads, weight)?.reshape((batch, tokens, width))
    }

    fn queries(&self, x: &Tensor) -> TensorResult<Tensor> {
        self.normed(self.q.forward(x)?, &self.norm_q)
    }

    fn keys(&self, x: &Tensor) -> TensorResult<Tensor> {
        self.normed(self.k.forward(x)?, &self.norm_k)
    }
}

impl Block {
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

    /// The layers that an adapter can sit on, by their name within the block.
    pub fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
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

    /// Modulations of the image stream (6, or 9 with dual attention) and of the text stream (6; the last block's are
    /// scale and shift), each `[batch, width]`; `conditioning` is `silu` of the time and pooled text embedding.
    fn modulations(&self, conditioning: &Tensor) -> TensorResult<(Vec<Tensor>, Vec<Tensor>)> {
        let split = |projection: &Projection| {
            let (width, outer) = projection.sizes();
            projection.forward(conditioning)?.chunk(outer / width, 1)
        };
        Ok((split(&self.norm1)?, split(&self.norm1_context)?))
    }

    fn normed_text(&self, text: &Tensor, modulation: &[Tensor]) -> TensorResult<Tensor> {
        match self.context {
            Some(_) => ops::layer_norm_modulate(text, &modulation[0], &modulation[1]),
            // diffusers' AdaLayerNormContinuous has scale before shift.
            None => ops::layer_norm_modulate(text, &modulation[1], &modulation[0]),
        }
    }

    /// Queries and keys of the joint attention alone: all that segmentation needs of the expert block.
    pub fn probe(&self, streams: &Streams, conditioning: &Tensor) -> TensorResult<Probe> {
        let (for_image, for_text) = self.modulations(conditioning)?;
        let image = ops::layer_norm_modulate(&streams.image, &for_image[0], &for_image[1])?;
        let text = self.normed_text(&streams.text, &for_text)?;
        let attention = &self.attention;
        Ok(Probe {
            queries: attention.image.queries(&image)?,
            keys: Tensor::cat(&[attention.image.keys(&image)?, attention.text.keys(&text)?], 1)?,
            last_key_count: streams.last_text_count,
            words: CLIP_TOKENS,
        })
    }

    /// The block's output, and what its joint attention came from. The last block leaves the text stream as it was.
    pub fn forward(&self, streams: &Streams, conditioning: &Tensor) -> TensorResult<(Streams, Probe)> {
        let (out, inputs) = self.forward_with(streams, conditioning, JointInputs::attend)?;
        Ok((out, inputs.probe()))
    }

    /// The same with another joint attention: `attend` returns what [`JointInputs::attend`] would.
    pub fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Tensor,
        attend: impl FnOnce(&JointInputs) -> TensorResult<Tensor>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let (for_image, for_text) = self.modulations(conditioning)?;
        let tokens = streams.image.dim(1)?;
        let image = ops::layer_norm_modulate(&streams.image, &for_image[0], &for_image[1])?;
        let text = self.normed_text(&streams.text, &for_text)?;
        let attention = &self.attention;
        let inputs = JointInputs {
            image_queries: attention.image.queries(&image)?,
            text_queries: self.context.as_ref().map(|_| attention.text.queries(&text)).transpose()?,
            keys: Tensor::cat(&[attention.image.keys(&image)?, attention.text.keys(&text)?], 1)?,
            values: Tensor::cat(&[attention.image.v.forward(&image)?, attention.text.v.forward(&text)?], 1)?,
            heads: self.heads,
            last_key_count: streams.last_text_count,
            words: CLIP_TOKENS,
        };
        let attended = attend(&inputs)?;

        let update = attention.out.forward(&attended.narrow(1, 0, tokens)?)?;
        let mut out = ops::gated_residual(&streams.image, &update, &for_image[2])?;
        if let Some(second) = &self.second_attention {
            let normed = ops::layer_norm_modulate(&streams.image, &for_image[6], &for_image[7])?;
            let (q, k) = (second.qkv.queries(&normed)?, second.qkv.keys(&normed)?);
            let attended = ops::attention(&q, &k, &second.qkv.v.forward(&normed)?, self.heads, 1)?;
            out = ops::gated_residual(&out, &second.out.forward(&attended)?, &for_image[8])?;
        }
        let image = self.feed_forward.forward(&out, [&for_image[3], &for_image[4], &for_image[5]])?;

        let text = match &self.context {
            None => streams.text.clone(),
            Some(context) => {
                let attended = attended.narrow(1, tokens, streams.text.dim(1)?)?;
                let update = context.attention_out.forward(&attended)?;
                let out = ops::gated_residual(&streams.text, &update, &for_text[2])?;
                context.feed_forward.forward(&out, [&for_text[3], &for_text[4], &for_text[5]])?
            }
        };
        Ok((Streams { image, text, last_text_count: streams.last_text_count }, inputs))
    }
}
