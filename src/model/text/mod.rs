//! Text encoders: prompts to the MM-DiT's conditioning (diffusers: `StableDiffusion3Pipeline.encode_prompt`).
mod added_tokens;
pub(crate) mod clip;
pub(crate) mod clip_layer;
pub mod prompt_file;
mod shape;
pub(crate) mod t5;
pub mod tokenizer;
mod tokens;

use crate::config::TextEncoderKind;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use clip::{ClipConfig, ClipTextModel};
pub use shape::TextShape;
use std::ops::Range;
use t5::T5Encoder;
pub use tokenizer::CutPrompt;
use tokenizer::{CLIP_TOKENS, ClipTokenizer, T5Tokenizer};
pub use tokens::{PromptTokenizers, PromptTokens};

/// The MM-DiT's conditioning for a batch of prompts, f32.
#[derive(Clone, Debug)]
pub struct TextEmbedding {
    /// CLIP's 77 tokens, then T5's tokens or zeros: `[batch, tokens, joint_attention_dim]`.
    pub context: Tensor,
    /// Both CLIPs' pooled projections, concatenated: `[batch, pooled_projection_dim]`.
    pub pooled: Tensor,
    /// Number of trailing tokens that are known to be zero; all of T5's without T5.
    pub zeros: usize,
}

impl TextEmbedding {
    /// An embedding from elsewhere; counts its trailing zero tokens.
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

    /// Replaces each prompt's token embeddings by `tokens`, `[tokens, width]`; differentiable in `tokens`.
    pub fn with_tokens(&self, tokens: &Tensor) -> candle_core::Result<Self> {
        let context = tokens.broadcast_left(self.pooled.dim(0)?)?.contiguous()?;
        Ok(Self { context, pooled: self.pooled.clone(), zeros: 0 })
    }

    /// Concatenates embeddings along the batch.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let join = |get: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(|part| get(part)).collect::<Vec<_>>(), 0);
        let zeros = parts.iter().map(|part| part.zeros).min().unwrap_or(0);
        Ok(Self { context: join(|part| &part.context)?, pooled: join(|part| &part.pooled)?, zeros })
    }
}

/// One of the two CLIPs; zeros replace the output of an unused one.
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
    /// False if only the tokenizers are loaded.
    can_encode: bool,
}

impl TextEncoders {
    /// Loads the encoders in `kinds`; their weights are kept as `dtype`.
    ///
    /// `max_sequence_length` is the number of T5's tokens, or of the zeros that replace them, as in diffusers (releases
    /// of 2024 always had 77 zeros). Computes in f32 on the CPU, in `dtype` on a GPU.
    pub fn load(
        files: &ModelFiles,
        kinds: &[TextEncoderKind],
        max_sequence_length: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        files.known_pipeline()?;
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

    /// Loads only sizes and CLIP's tokenizers: [`Self::encode`] fails.
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

    /// Frees the weights: [`Self::encode`] fails afterwards.
    pub fn unload(&mut self) {
        self.clips.iter_mut().for_each(|clip| clip.model = None);
        self.t5 = None;
        self.can_encode = false;
    }

    /// Whether the weights are loaded.
    pub fn can_encode(&self) -> bool {
        self.can_encode
    }

    /// The compute dtype for weights of `dtype`.
    pub fn arithmetic(dtype: DType, device: &Device) -> DType {
        if device.is_cpu() { DType::F32 } else { dtype }
    }

    /// Sizes of the embeddings.
    pub fn shape(&self) -> TextShape {
        self.shape
    }

    /// Embeds prompts of any length, truncated to the encoders' numbers of tokens.
    ///
    /// # Errors
    /// The weights are not loaded.
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
        let t5_tokens = self.shape.tokens - CLIP_TOKENS;
        let t5 = match &self.t5 {
            Some((tokenizer, encoder)) => {
                let ids = prompts.iter().map(|prompt| tokenizer.encode(prompt, t5_tokens));
                encoder.forward(&ids.collect::<Result<Vec<_>>>()?)?
            }
            None => zeros(&[batch, t5_tokens, self.shape.width])?,
        };
        let (context, pooled) = (Tensor::cat(&[clip, t5], 1)?, Tensor::cat(&pooled, 1)?);
        Ok(TextEmbedding { context, pooled, zeros: self.shape.zeros() })
    }

    /// Text tokens that the MM-DiT computes: CLIP's 77 and T5's, or a single one for the zeros that replace T5's.
    pub fn tokens(&self) -> usize {
        let t5_tokens = self.shape.tokens - CLIP_TOKENS;
        CLIP_TOKENS + if self.shape.has_t5 { t5_tokens } else { t5_tokens.min(1) }
    }

    /// The ranges of each name's CLIP tokens in the prompt of all names joined by spaces; see
    /// [`ClipTokenizer::token_spans`].
    pub fn token_spans(&self, names: &[&str]) -> Result<Vec<Option<Range<usize>>>> {
        self.word_tokenizer().token_spans(names)
    }

    /// What the encoders leave out of a prompt, since it is longer than the tokens that one of them reads.
    pub fn cut(&self, prompt: &str) -> Result<Option<CutPrompt>> {
        match (self.word_tokenizer().cut(prompt)?, &self.t5) {
            (None, Some((tokenizer, _))) => tokenizer.cut(prompt, self.shape.tokens - CLIP_TOKENS),
            (cut, _) => Ok(cut),
        }
    }

    /// The places of a prompt's text among the word tokens, without start and end token.
    pub fn text_places(&self) -> Range<usize> {
        1..CLIP_TOKENS - 1
    }

    /// The number of word tokens of a text, whether they fit in a prompt or not.
    pub fn count_tokens(&self, text: &str) -> Result<usize> {
        Ok(self.word_tokenizer().encode_text(text)?.len())
    }

    /// The tokenizer that locates names and words in a prompt: CLIP-L's.
    fn word_tokenizer(&self) -> &ClipTokenizer {
        &self.clips[0].tokenizer
    }
}
