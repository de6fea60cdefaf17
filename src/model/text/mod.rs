//! Text encoders: prompts to what the MM-DiT reads (diffusers: `StableDiffusion3Pipeline.encode_prompt`).
pub mod clip;
pub mod clip_layer;
pub mod prompt_file;
mod shape;
pub mod t5;
pub mod tokenizer;

use crate::config::TextEncoderKind;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use clip::{ClipConfig, ClipTextModel};
pub use shape::TextShape;
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
    /// So many of the tokens after CLIP's, at the end, are known to be zero, as all are without T5.
    pub zeros: usize,
}

impl TextEmbedding {
    /// An embedding from elsewhere: looks how many tokens at its end are zero.
    pub fn new(context: Tensor, pooled: Tensor) -> Result<Self> {
        let zeros = match context.dim(1)?.checked_sub(CLIP_TOKENS) {
            None | Some(0) => 0,
            Some(behind) => {
                let behind = context.narrow(1, CLIP_TOKENS, behind)?.to_dtype(DType::F32)?;
                let sizes = behind.abs()?.sum((0, 2))?.to_vec1::<f32>()?;
                sizes.iter().rev().take_while(|size| **size == 0.0).count()
            }
        };
        Ok(Self { context, pooled, zeros })
    }

    /// The same with these token embeddings, `[tokens, width]`, for every prompt of the batch; differentiable in them.
    pub fn with_tokens(&self, tokens: &Tensor) -> candle_core::Result<Self> {
        let context = tokens.broadcast_left(self.pooled.dim(0)?)?.contiguous()?;
        Ok(Self { context, pooled: self.pooled.clone(), zeros: 0 })
    }

    /// Embeddings one after the other as one batch.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let join = |get: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(|part| get(part)).collect::<Vec<_>>(), 0);
        let zeros = parts.iter().map(|part| part.zeros).min().unwrap_or(0);
        Ok(Self { context: join(|part| &part.context)?, pooled: join(|part| &part.pooled)?, zeros })
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
    shape: TextShape,
    device: Device,
    /// False where only the tokenizers are there.
    can_encode: bool,
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
        let mut encoders = Self::without_weights(files, kinds, max_sequence_length, device)?;
        let compute = Self::arithmetic(dtype, device);
        let parts = [(Part::ClipL, TextEncoderKind::ClipL), (Part::ClipG, TextEncoderKind::ClipG)];
        for (clip, (part, kind)) in encoders.clips.iter_mut().zip(parts) {
            if kinds.contains(&kind) {
                clip.model = Some(ClipTextModel::load(files, part, dtype, compute, device)?);
            }
        }
        if encoders.shape.has_t5 {
            let tokenizer = T5Tokenizer::open(&files.tokenizer(Part::T5)?)?;
            let encoder = T5Encoder::load(files, dtype, compute, device)?;
            let (expected, found) = (encoders.shape.width, encoder.hidden_size);
            if found != expected {
                let problem = format!("joint_attention_dim is {expected}, but T5's d_model is {found}");
                return Err(Error::file(files.config_path(Part::Transformer), problem));
            }
            encoders.t5 = Some((tokenizer, encoder));
        }
        Ok(Self { can_encode: true, ..encoders })
    }

    /// The sizes and CLIP's tokenizers of those of `kinds`: [`Self::encode`] fails.
    pub fn without_weights(
        files: &ModelFiles,
        kinds: &[TextEncoderKind],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<Self> {
        let clip = |part: Part| {
            let tokenizer = ClipTokenizer::open(&files.tokenizer(part)?)?;
            Ok::<_, Error>(Clip { tokenizer, config: files.config(part)?, model: None })
        };
        Ok(Self {
            clips: [clip(Part::ClipL)?, clip(Part::ClipG)?],
            t5: None,
            shape: TextShape::open(files, kinds, max_sequence_length)?,
            device: device.clone(),
            can_encode: false,
        })
    }

    /// Lets the weights go: [`Self::encode`] fails from now on.
    pub fn unload(&mut self) {
        self.clips.iter_mut().for_each(|clip| clip.model = None);
        self.t5 = None;
        self.can_encode = false;
    }

    /// Whether their weights are loaded.
    pub fn can_encode(&self) -> bool {
        self.can_encode
    }

    /// The type that encoders with weights of `dtype` compute in.
    pub fn arithmetic(dtype: DType, device: &Device) -> DType {
        if device.is_cpu() { DType::F32 } else { dtype }
    }

    /// Sizes of the embeddings.
    pub fn shape(&self) -> TextShape {
        self.shape
    }

    /// Embeds prompts of any length; what does not fit into the encoders' tokens is cut off.
    ///
    /// # Errors
    /// The encoders were opened without weights.
    pub fn encode(&self, prompts: &[&str]) -> Result<TextEmbedding> {
        if !self.can_encode {
            return Err(Error::Failed("the text encoders are not loaded".into()));
        }
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
        features.push(zeros(&[batch, CLIP_TOKENS, self.shape.width - self.shape.clip_width])?);
        let clip = Tensor::cat(&features, 2)?;
        let more = self.shape.tokens - CLIP_TOKENS;
        let t5 = match &self.t5 {
            Some((tokenizer, encoder)) => {
                let ids = prompts.iter().map(|prompt| tokenizer.encode(prompt, more));
                encoder.forward(&ids.collect::<Result<Vec<_>>>()?)?
            }
            None => zeros(&[batch, more, self.shape.width])?,
        };
        let (context, pooled) = (Tensor::cat(&[clip, t5], 1)?, Tensor::cat(&pooled, 1)?);
        Ok(TextEmbedding { context, pooled, zeros: self.shape.zeros() })
    }

    /// Text tokens that the MM-DiT computes: CLIP's 77 and T5's, or one for the zeros in their place.
    pub fn tokens(&self) -> usize {
        let more = self.shape.tokens - CLIP_TOKENS;
        CLIP_TOKENS + if self.shape.has_t5 { more } else { more.min(1) }
    }

    /// Where each name's tokens stand among CLIP's in the prompt of the names joined by spaces; see
    /// [`ClipTokenizer::token_spans`].
    pub fn token_spans(&self, names: &[&str]) -> Result<Vec<Option<Range<usize>>>> {
        self.word_tokenizer().token_spans(names)
    }

    /// Where a prompt's text stands among the tokens that words are found by, from its first to the last that fits.
    pub fn text_places(&self) -> Range<usize> {
        // Between the start and the end token.
        1..CLIP_TOKENS - 1
    }

    /// How many of those tokens a text is, whether it fits or not.
    pub fn count_tokens(&self, text: &str) -> Result<usize> {
        Ok(self.word_tokenizer().encode_text(text)?.len())
    }

    /// The tokenizer by whose tokens names and words are found: CLIP-L's.
    fn word_tokenizer(&self) -> &ClipTokenizer {
        &self.clips[0].tokenizer
    }
}
