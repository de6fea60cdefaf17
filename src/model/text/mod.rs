//! Text encoders: prompts to the denoiser's conditioning (diffusers: `encode_prompt` of the pipelines).
mod added_tokens;
mod chat_template;
pub(crate) mod clip;
pub(crate) mod clip_layer;
pub mod original;
pub mod prompt_file;
mod qwen3;
pub mod qwen_tokenizer;
mod shape;
pub(crate) mod t5;
pub mod tokenizer;
mod tokens;

use crate::config::TextEncoderKind;
use crate::model::families::pipelines::TextForm;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use clip::{ClipConfig, ClipTextModel, Pooling};
use qwen_tokenizer::QwenTokenizer;
use qwen3::Qwen3Encoder;
pub use shape::TextShape;
use std::ops::Range;
use t5::T5Encoder;
pub use tokenizer::CutPrompt;
use tokenizer::{CLIP_TEXT, CLIP_TOKENS, TextTokenizer};
pub use tokens::{PromptTokenizers, PromptTokens};

/// The denoiser's conditioning for a batch of prompts, f32.
#[derive(Clone, Debug)]
pub struct TextEmbedding {
    /// `[batch, tokens, joint_attention_dim]`: CLIP's 77 tokens, where the family has such, then T5's tokens or zeros; or
    /// Qwen3's tokens.
    pub context: Tensor,
    /// The CLIPs' pooled embeddings, concatenated: `[batch, pooled_projection_dim]`; of no width without CLIPs.
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

    /// Concatenates embeddings along the batch.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let join = |get: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(|part| get(part)).collect::<Vec<_>>(), 0);
        let zeros = parts.iter().map(|part| part.zeros).min().unwrap_or(0);
        Ok(Self { context: join(|part| &part.context)?, pooled: join(|part| &part.pooled)?, zeros })
    }
}

/// A CLIP; zeros replace the output of an unused one.
struct Clip {
    kind: TextEncoderKind,
    tokenizer: TextTokenizer,
    config: ClipConfig,
    model: Option<ClipTextModel>,
}

/// The text encoders of a pipeline with their tokenizers.
pub struct TextEncoders {
    clips: Vec<Clip>,
    t5: Option<T5Encoder>,
    /// Where T5 is loaded or has the words.
    t5_tokenizer: Option<TextTokenizer>,
    qwen: Option<Qwen3Encoder>,
    qwen_tokenizer: Option<QwenTokenizer>,
    shape: TextShape,
    device: Device,
    /// False if only the tokenizers are loaded.
    can_encode: bool,
}

impl TextEncoders {
    /// Loads the encoders in `kinds`; their weights are kept as `dtype`.
    ///
    /// `max_sequence_length` is the number of tokens of T5 or Qwen3, or of the zeros that replace T5's, as in diffusers
    /// (releases of 2024 always had 77 zeros). Computes in f32 on the CPU, in `dtype` on a GPU.
    pub fn load(
        files: &ModelFiles,
        kinds: &[TextEncoderKind],
        max_sequence_length: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let mut encoders = Self::without_weights(files, kinds, max_sequence_length, device)?;
        let compute = Self::arithmetic(dtype, device);
        let pooling = match files.known_pipeline()?.text {
            TextForm::ClipsThenT5 => Pooling::Projected,
            TextForm::T5 => Pooling::Normed,
            TextForm::Qwen3 { layers } => {
                encoders.qwen = Some(Qwen3Encoder::load(files, layers, dtype, compute, device)?);
                return Ok(Self { can_encode: true, ..encoders });
            }
        };
        for clip in encoders.clips.iter_mut().filter(|clip| kinds.contains(&clip.kind)) {
            let part = Part::Text(clip.kind);
            clip.model = Some(ClipTextModel::load(files, part, pooling, dtype, compute, device)?);
        }
        if encoders.shape.is_filled {
            if encoders.t5_tokenizer.is_none() {
                encoders.t5_tokenizer = Some(open_t5_tokenizer(files)?);
            }
            let encoder = T5Encoder::load(files, dtype, compute, device)?;
            let (expected, found) = (encoders.shape.width, encoder.config.d_model);
            if found != expected {
                let problem = format!("joint_attention_dim is {expected}, but T5's d_model is {found}");
                return Err(Error::file(files.config_path(Part::Transformer), problem));
            }
            encoders.t5 = Some(encoder);
        }
        Ok(Self { can_encode: true, ..encoders })
    }

    /// Loads only sizes and the tokenizers of CLIP and of the encoder that has the words: [`Self::encode`] fails.
    pub fn without_weights(
        files: &ModelFiles,
        kinds: &[TextEncoderKind],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<Self> {
        let clip = |kind: TextEncoderKind| {
            let part = Part::Text(kind);
            let tokenizer = TextTokenizer::open_clip(&files.tokenizer(part)?)?;
            Ok::<_, Error>(Clip { kind, tokenizer, config: files.config(part)?, model: None })
        };
        let pipeline = files.known_pipeline()?;
        let is_clip = |kind: &TextEncoderKind| matches!(kind, TextEncoderKind::ClipL | TextEncoderKind::ClipG);
        let clips = { pipeline.encoders.iter() }.map(|folders| folders.kind).filter(is_clip);
        let t5_tokenizer = (pipeline.text == TextForm::T5).then(|| open_t5_tokenizer(files)).transpose();
        let has_qwen = matches!(pipeline.text, TextForm::Qwen3 { .. });
        let qwen = || QwenTokenizer::open(&files.tokenizer(Part::Text(TextEncoderKind::Qwen3))?);
        Ok(Self {
            clips: clips.map(clip).collect::<Result<_>>()?,
            t5: None,
            t5_tokenizer: t5_tokenizer?,
            qwen: None,
            qwen_tokenizer: has_qwen.then(qwen).transpose()?,
            shape: TextShape::open(files, kinds, max_sequence_length)?,
            device: device.clone(),
            can_encode: false,
        })
    }

    /// Frees the weights: [`Self::encode`] fails afterwards.
    pub fn unload(&mut self) {
        self.clips.iter_mut().for_each(|clip| clip.model = None);
        self.t5 = None;
        self.qwen = None;
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
        let (batch, TextShape { clip_tokens, width, clip_width, .. }) = (prompts.len(), self.shape);
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &self.device);
        if let (Some(encoder), Some(tokenizer)) = (&self.qwen, &self.qwen_tokenizer) {
            let tokens = prompts.iter().map(|prompt| tokenizer.encode(prompt, self.shape.tokens));
            let context = encoder.forward(&tokens.collect::<Result<Vec<_>>>()?)?;
            return Ok(TextEmbedding { context, pooled: zeros(&[batch, 0])?, zeros: 0 });
        }
        let (mut features, mut pooled) = (Vec::new(), Vec::new());
        for clip in &self.clips {
            match &clip.model {
                Some(model) => {
                    let ids = prompts.iter().map(|prompt| clip.tokenizer.encode(prompt, CLIP_TOKENS));
                    let output = model.forward(&ids.collect::<Result<Vec<_>>>()?)?;
                    features.push(output.hidden);
                    pooled.push(output.pooled);
                }
                None => {
                    features.push(zeros(&[batch, CLIP_TOKENS, clip.config.hidden_size])?);
                    pooled.push(zeros(&[batch, clip.config.projection_dim])?);
                }
            }
        }
        let t5_tokens = self.shape.tokens_behind_clip();
        let t5 = match (&self.t5, &self.t5_tokenizer) {
            (Some(encoder), Some(tokenizer)) => {
                let ids = prompts.iter().map(|prompt| tokenizer.encode(prompt, t5_tokens));
                encoder.forward(&ids.collect::<Result<Vec<_>>>()?)?
            }
            _ => zeros(&[batch, t5_tokens, width])?,
        };
        let context = if clip_tokens == 0 {
            t5
        } else {
            features.push(zeros(&[batch, clip_tokens, width - clip_width])?);
            Tensor::cat(&[Tensor::cat(&features, 2)?, t5], 1)?
        };
        Ok(TextEmbedding { context, pooled: Tensor::cat(&pooled, 1)?, zeros: self.shape.zeros() })
    }

    /// Text tokens that the model computes: CLIP's, and the others or a single one for zeros in their place.
    pub fn tokens(&self) -> usize {
        let behind = self.shape.tokens_behind_clip();
        self.shape.clip_tokens + if self.shape.is_filled { behind } else { behind.min(1) }
    }

    /// The ranges of each name's word tokens in the prompt of all names joined by spaces; `None` for names without tokens,
    /// for the first name that does not fit whole, and for all names after it.
    pub fn token_spans(&self, names: &[&str]) -> Result<Vec<Option<Range<usize>>>> {
        match self.words() {
            Words::OfText(tokenizer) => tokenizer.token_spans(names, self.text_places()),
            Words::Qwen(tokenizer) => {
                let end = self.text_places().end;
                let fits = |span: Range<usize>| (!span.is_empty() && span.end <= end).then_some(span);
                Ok(tokenizer.spans(names)?.into_iter().map(fits).collect())
            }
        }
    }

    /// How many tokens a name has at the beginning of a prompt, and behind other names: there with those between, if there
    /// are such, first.
    pub fn tokens_of_name(&self, name: &str) -> Result<NameTokens> {
        Ok(match self.words() {
            Words::Qwen(tokenizer) => {
                let spans = tokenizer.spans(&[name, name])?;
                let [first, second] = &spans[..] else { return Ok(NameTokens::default()) };
                let (between, behind) = (second.start.saturating_sub(first.end), second.len());
                NameTokens { first: first.len(), between, behind }
            }
            _ => {
                let tokens = self.count_tokens(name)?;
                NameTokens { first: tokens, between: 0, behind: tokens }
            }
        })
    }

    /// What the encoders leave out of a prompt, since it is longer than the tokens that one of them reads.
    pub fn cut(&self, prompt: &str) -> Result<Option<CutPrompt>> {
        let of_clip = match self.words() {
            // The pooled embedding alone is CLIP's, of a prompt's beginning whenever that is long.
            Words::OfText(_) if self.shape.clip_tokens == 0 => None,
            Words::OfText(clip) => clip.cut(prompt, CLIP_TOKENS)?,
            Words::Qwen(tokenizer) => return tokenizer.cut(prompt, self.shape.tokens),
        };
        match (of_clip, &self.t5, &self.t5_tokenizer) {
            (None, Some(_), Some(tokenizer)) => tokenizer.cut(prompt, self.shape.tokens_behind_clip()),
            (cut, ..) => Ok(cut),
        }
    }

    /// The places of a prompt's text among the word tokens, without start and end token.
    pub fn text_places(&self) -> Range<usize> {
        match self.words() {
            // T5's end token comes last.
            Words::OfText(_) if self.shape.clip_tokens == 0 => {
                0..self.shape.words.min(self.shape.tokens.saturating_sub(1))
            }
            Words::OfText(_) => CLIP_TEXT,
            Words::Qwen(tokenizer) => {
                let end = self.shape.words.min(self.shape.tokens);
                tokenizer.before().min(end)..end
            }
        }
    }

    /// The places of this prompt's text among the word tokens, where other word tokens are those of a template, which can
    /// stand for nothing in a picture; `None` where all word tokens may.
    pub fn words_of(&self, prompt: &str) -> Result<Option<Range<usize>>> {
        let Words::Qwen(tokenizer) = self.words() else { return Ok(None) };
        let (Range { start, end }, room) = (tokenizer.places(prompt)?, self.text_places());
        Ok(Some(start.min(room.end)..end.min(room.end)))
    }

    /// The number of word tokens of a text, whether they fit in a prompt or not.
    pub fn count_tokens(&self, text: &str) -> Result<usize> {
        Ok(match self.words() {
            Words::OfText(tokenizer) => tokenizer.encode_text(text)?.len(),
            Words::Qwen(tokenizer) => tokenizer.count(text)?,
        })
    }

    /// The tokenizer that locates names and words in a prompt.
    fn words(&self) -> Words<'_> {
        match (&self.qwen_tokenizer, &self.t5_tokenizer) {
            (Some(tokenizer), _) => Words::Qwen(tokenizer),
            (None, Some(tokenizer)) if self.shape.clip_tokens == 0 => Words::OfText(tokenizer),
            _ => Words::OfText(&self.clips[0].tokenizer),
        }
    }
}

/// How many tokens a name has in a prompt of names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameTokens {
    /// At the beginning.
    pub first: usize,
    /// Between a name before it and it.
    pub between: usize,
    /// Behind another name.
    pub behind: usize,
}

/// The tokenizer whose tokens are the word tokens.
enum Words<'a> {
    /// The first CLIP's, or T5's.
    OfText(&'a TextTokenizer),
    Qwen(&'a QwenTokenizer),
}

fn open_t5_tokenizer(files: &ModelFiles) -> Result<TextTokenizer> {
    TextTokenizer::open_t5(&files.tokenizer(Part::Text(TextEncoderKind::T5))?)
}
