//! Text encoders: prompts to what the MM-DiT reads (diffusers: `StableDiffusion3Pipeline.encode_prompt`).
pub mod clip;
pub mod clip_layer;
pub mod t5;
pub mod tokenizer;

use super::files::{ModelFiles, Part};
use crate::config::TextEncoderKind;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use clip::{ClipConfig, ClipTextModel};
use std::ops::Range;
use t5::T5Encoder;
use tokenizer::{CLIP_TOKENS, ClipTokenizer, T5Tokenizer};

/// What the MM-DiT reads of a batch of prompts, f32.
#[derive(Clone, Debug)]
pub struct TextEmbedding {
    /// CLIP's 77 tokens, then T5's or zeros: `[batch, tokens, joint_attention_dim]`.
    pub context: Tensor,
    /// Both CLIPs' projected end-of-text states: `[batch, pooled_projection_dim]`.
    pub pooled: Tensor,
}

impl TextEmbedding {
    /// Embeddings one after the other as one batch.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let join = |get: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(|part| get(part)).collect::<Vec<_>>(), 0);
        Ok(Self { context: join(|part| &part.context)?, pooled: join(|part| &part.pooled)? })
    }
}

/// One of the two CLIPs; where it is not used, zeros of its sizes stand in.
struct Clip {
    tokenizer: ClipTokenizer,
    config: ClipConfig,
    model: Option<ClipTextModel>,
}

/// The text encoders of a pipeline with their tokenizers.
pub struct TextEncoders {
    clips: [Clip; 2],
    t5: Option<(T5Tokenizer, T5Encoder)>,
    /// Tokens after CLIP's.
    max_sequence_length: usize,
    joint: usize,
    device: Device,
}

impl TextEncoders {
    /// Loads those of `kinds`; their weights stay in memory as `dtype`.
    ///
    /// T5's tokens, or the zeros that stand in for them, number `max_sequence_length` (diffusers' name for it, and its
    /// rule; diffusers of 2024 had 77 zeros whatever it was). Computes in f32 on the CPU, in `dtype` on a GPU.
    pub fn load(
        files: &ModelFiles,
        kinds: &[TextEncoderKind],
        max_sequence_length: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct TransformerSizes {
            joint_attention_dim: usize,
            pooled_projection_dim: usize,
        }
        let sizes: TransformerSizes = files.config(Part::Transformer)?;
        let compute = if device.is_cpu() { DType::F32 } else { dtype };
        let clip = |part: Part, kind: TextEncoderKind| {
            let model = match kinds.contains(&kind) {
                true => Some(ClipTextModel::load(files, part, dtype, compute, device)?),
                false => None,
            };
            let tokenizer = ClipTokenizer::open(&files.tokenizer(part)?)?;
            Ok::<_, Error>(Clip { tokenizer, config: files.config(part)?, model })
        };
        let clips = [clip(Part::ClipL, TextEncoderKind::ClipL)?, clip(Part::ClipG, TextEncoderKind::ClipG)?];
        let misfit = |key: &str, expected: usize, what: &str, found: usize| {
            let problem = format!("{key} is {expected}, but {what} {found}");
            Error::file(files.config_path(Part::Transformer), problem)
        };
        let width: usize = clips.iter().map(|clip| clip.config.hidden_size).sum();
        if width > sizes.joint_attention_dim {
            let what = "the CLIP text encoders' hidden sizes add up to";
            return Err(misfit("joint_attention_dim", sizes.joint_attention_dim, what, width));
        }
        let pooled: usize = clips.iter().map(|clip| clip.config.projection_dim).sum();
        if pooled != sizes.pooled_projection_dim {
            let what = "the CLIP text encoders' projection_dim add up to";
            return Err(misfit("pooled_projection_dim", sizes.pooled_projection_dim, what, pooled));
        }
        let t5 = match kinds.contains(&TextEncoderKind::T5) {
            true => {
                let tokenizer = T5Tokenizer::open(&files.tokenizer(Part::T5)?)?;
                let encoder = T5Encoder::load(files, dtype, compute, device)?;
                if encoder.hidden_size != sizes.joint_attention_dim {
                    let expected = sizes.joint_attention_dim;
                    return Err(misfit("joint_attention_dim", expected, "T5's d_model is", encoder.hidden_size));
                }
                Some((tokenizer, encoder))
            }
            false => None,
        };
        Ok(Self { clips, t5, max_sequence_length, joint: sizes.joint_attention_dim, device: device.clone() })
    }

    /// Embeds prompts of any length; what does not fit into the encoders' tokens is cut off.
    pub fn encode(&self, prompts: &[&str]) -> Result<TextEmbedding> {
        let batch = prompts.len();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &self.device);
        let (mut features, mut pooled) = (Vec::new(), Vec::new());
        for clip in &self.clips {
            match &clip.model {
                Some(model) => {
                    let ids = prompts.iter().map(|prompt| clip.tokenizer.encode(prompt)).collect::<Result<Vec<_>>>()?;
                    let output = model.forward(&ids)?;
                    features.push(output.hidden);
                    pooled.push(output.pooled);
                }
                None => {
                    features.push(zeros(&[batch, CLIP_TOKENS, clip.config.hidden_size])?);
                    pooled.push(zeros(&[batch, clip.config.projection_dim])?);
                }
            }
        }
        let width: usize = self.clips.iter().map(|clip| clip.config.hidden_size).sum();
        features.push(zeros(&[batch, CLIP_TOKENS, self.joint - width])?);
        let clip = Tensor::cat(&features, 2)?;
        let t5 = match &self.t5 {
            Some((tokenizer, encoder)) => {
                let ids = prompts.iter().map(|prompt| tokenizer.encode(prompt, self.max_sequence_length));
                encoder.forward(&ids.collect::<Result<Vec<_>>>()?)?
            }
            None => zeros(&[batch, self.max_sequence_length, self.joint])?,
        };
        Ok(TextEmbedding { context: Tensor::cat(&[clip, t5], 1)?, pooled: Tensor::cat(&pooled, 1)? })
    }

    /// Text tokens that the MM-DiT computes: CLIP's 77 and T5's, or one for the zeros in their place.
    pub fn tokens(&self) -> usize {
        CLIP_TOKENS + if self.t5.is_some() { self.max_sequence_length } else { self.max_sequence_length.min(1) }
    }

    /// Where each name's tokens stand among CLIP's in the prompt of the names joined by spaces; see
    /// [`ClipTokenizer::token_spans`].
    pub fn token_spans(&self, names: &[&str]) -> Result<Vec<Option<Range<usize>>>> {
        self.clip_tokenizer().token_spans(names)
    }

    /// The tokenizer by whose tokens names and words are found: CLIP-L's.
    pub fn clip_tokenizer(&self) -> &ClipTokenizer {
        &self.clips[0].tokenizer
    }
}
