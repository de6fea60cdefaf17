//! Prompts as the tokenizers of a model's text encoders cut them, for people to see.
use super::qwen_tokenizer::QwenTokenizer;
use super::tokenizer::{CLIP_TOKENS, TextTokenizer};
use crate::config::{ModelConfig, TextEncoderKind};
use crate::model::families::pipelines::TextForm;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::Result;
use std::ops::Range;

/// A prompt's tokens for one text encoder, or for several that cut it equally.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTokens {
    /// The encoders, such as `CLIP-L, CLIP-G`.
    pub encoders: String,
    /// The bytes of the prompt that each token stands for, special tokens left out.
    pub ranges: Vec<Range<usize>>,
    /// Tokens that the encoder has room for; those after them are truncated.
    pub limit: usize,
}

/// The tokenizers of a model's text encoders.
pub enum PromptTokenizers {
    /// One or two CLIPs, and T5: each with its encoder's name and the length of its sequence, first that by which words are
    /// located; and the most word tokens.
    ClipsAndT5(Vec<(&'static str, TextTokenizer, usize)>, usize),
    /// Qwen3, with the length of its sequence and the most word tokens.
    Qwen3(Box<QwenTokenizer>, usize, usize),
}

impl PromptTokenizers {
    /// Reads the tokenizers of the encoders that `config` names.
    ///
    /// # Errors
    /// A tokenizer is missing, or damaged.
    pub fn open(files: &ModelFiles, config: &ModelConfig) -> Result<Self> {
        let has = |kind| config.text_encoders.contains(&kind);
        let tokenizer = |kind| files.tokenizer(Part::Text(kind));
        let clip = |kind| TextTokenizer::open_clip(&tokenizer(kind)?);
        let pipeline = files.known_pipeline()?;
        if matches!(pipeline.text, TextForm::Qwen3 { .. }) {
            let qwen = QwenTokenizer::open(&tokenizer(TextEncoderKind::Qwen3)?)?;
            return Ok(Self::Qwen3(Box::new(qwen), config.max_sequence_length, pipeline.words));
        }
        let mut all = vec![("CLIP-L", clip(TextEncoderKind::ClipL)?, CLIP_TOKENS)];
        if has(TextEncoderKind::ClipG) {
            all.push(("CLIP-G", clip(TextEncoderKind::ClipG)?, CLIP_TOKENS));
        }
        if has(TextEncoderKind::T5) {
            let t5 = TextTokenizer::open_t5(&tokenizer(TextEncoderKind::T5)?)?;
            let place = if pipeline.text == TextForm::T5 { 0 } else { all.len() };
            all.insert(place, ("T5", t5, config.max_sequence_length));
        }
        Ok(Self::ClipsAndT5(all, pipeline.words))
    }

    /// A prompt as each encoder gets it, first that by which words are located.
    ///
    /// # Errors
    /// A tokenizer cannot encode it.
    pub fn tokens(&self, prompt: &str) -> Result<Vec<PromptTokens>> {
        let tokenizers = match self {
            Self::ClipsAndT5(tokenizers, _) => tokenizers,
            Self::Qwen3(tokenizer, tokens, _) => {
                return Ok(vec![PromptTokens {
                    encoders: "Qwen3".into(),
                    ranges: tokenizer.token_ranges(prompt)?,
                    limit: tokens.saturating_sub(tokenizer.before()),
                }]);
            }
        };
        let mut found: Vec<PromptTokens> = vec![];
        for (encoder, tokenizer, tokens) in tokenizers {
            let (ranges, limit) = (tokenizer.token_ranges(prompt)?, tokenizer.room(*tokens));
            match found.last_mut().filter(|last| last.ranges == ranges && last.limit == limit) {
                Some(last) => last.encoders += &format!(", {encoder}"),
                None => found.push(PromptTokens { encoders: (*encoder).into(), ranges, limit }),
            }
        }
        Ok(found)
    }

    /// The range of each name's tokens among the first [`PromptTokens::ranges`] of the prompt of all names joined by
    /// spaces; `None` for names that do not fit.
    ///
    /// # Errors
    /// The tokenizer cannot encode a name.
    pub fn spans(&self, names: &[&str]) -> Result<Vec<Option<Range<usize>>>> {
        match self {
            Self::ClipsAndT5(tokenizers, words) => {
                let (_, tokenizer, tokens) = &tokenizers[0];
                tokenizer.token_spans(names, 0..tokenizer.room(*tokens).min(*words))
            }
            Self::Qwen3(tokenizer, tokens, words) => {
                let (before, end) = (tokenizer.before(), (*words).min(*tokens));
                let fits = |span: &Range<usize>| !span.is_empty() && span.end <= end;
                let place = |span: Range<usize>| fits(&span).then(|| span.start - before..span.end - before);
                Ok(tokenizer.spans(names)?.into_iter().map(place).collect())
            }
        }
    }
}
