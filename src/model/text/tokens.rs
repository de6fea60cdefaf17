//! Prompts as the tokenizers of a model's text encoders cut them, for people to see.
use super::qwen_tokenizer::QwenTokenizer;
use super::tokenizer::{CLIP_TOKENS, ClipTokenizer, T5Tokenizer};
use crate::config::{ModelConfig, TextEncoderKind};
use crate::model::families::pipelines::TextForm;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};
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
    /// One or two CLIPs, and T5.
    ClipsAndT5(Box<ClipsAndT5>),
    /// Qwen3, with the length of its sequence and the most word tokens.
    Qwen3(Box<QwenTokenizer>, usize, usize),
}

/// The tokenizers of CLIP and T5.
pub struct ClipsAndT5 {
    clip_l: ClipTokenizer,
    clip_g: Option<ClipTokenizer>,
    /// With the length of its sequence.
    t5: Option<(T5Tokenizer, usize)>,
    /// Places of T5's tokens among which the names of classes are located in a prompt; none where CLIP-L has them.
    t5_words: Option<Range<usize>>,
}

impl PromptTokenizers {
    /// Reads the tokenizers of the encoders that `config` names.
    ///
    /// # Errors
    /// A tokenizer is missing, or damaged.
    pub fn open(files: &ModelFiles, config: &ModelConfig) -> Result<Self> {
        let has = |kind| config.text_encoders.contains(&kind);
        let tokenizer = |kind| files.tokenizer(Part::Text(kind));
        let clip = |kind| ClipTokenizer::open(&tokenizer(kind)?);
        let pipeline = files.known_pipeline()?;
        let t5 = || Ok::<_, Error>((T5Tokenizer::open(&tokenizer(TextEncoderKind::T5)?)?, config.max_sequence_length));
        if matches!(pipeline.text, TextForm::Qwen3 { .. }) {
            let qwen = QwenTokenizer::open(&tokenizer(TextEncoderKind::Qwen3)?)?;
            return Ok(Self::Qwen3(Box::new(qwen), config.max_sequence_length, pipeline.words));
        }
        Ok(Self::ClipsAndT5(Box::new(ClipsAndT5 {
            clip_l: clip(TextEncoderKind::ClipL)?,
            clip_g: has(TextEncoderKind::ClipG).then(|| clip(TextEncoderKind::ClipG)).transpose()?,
            t5: has(TextEncoderKind::T5).then(t5).transpose()?,
            t5_words: (pipeline.text == TextForm::T5)
                .then(|| 0..pipeline.words.min(config.max_sequence_length.saturating_sub(1))),
        })))
    }

    /// A prompt as each encoder gets it, first that by which words are located.
    ///
    /// # Errors
    /// A tokenizer cannot encode it.
    pub fn tokens(&self, prompt: &str) -> Result<Vec<PromptTokens>> {
        match self {
            Self::ClipsAndT5(tokenizers) => tokenizers.tokens(prompt),
            Self::Qwen3(tokenizer, tokens, _) => Ok(vec![PromptTokens {
                encoders: "Qwen3".into(),
                ranges: tokenizer.token_ranges(prompt)?,
                limit: tokens.saturating_sub(tokenizer.before()),
            }]),
        }
    }

    /// The range of each name's tokens among the first [`PromptTokens::ranges`] of the prompt of all names joined by
    /// spaces; `None` for names that do not fit.
    ///
    /// # Errors
    /// The tokenizer cannot encode a name.
    pub fn spans(&self, names: &[&str]) -> Result<Vec<Option<Range<usize>>>> {
        match self {
            Self::ClipsAndT5(tokenizers) => tokenizers.spans(names),
            Self::Qwen3(tokenizer, tokens, words) => {
                let (before, end) = (tokenizer.before(), (*words).min(*tokens));
                let fits = |span: &Range<usize>| !span.is_empty() && span.end <= end;
                let place = |span: Range<usize>| fits(&span).then(|| span.start - before..span.end - before);
                Ok(tokenizer.spans(names)?.into_iter().map(place).collect())
            }
        }
    }
}

impl ClipsAndT5 {
    fn tokens(&self, prompt: &str) -> Result<Vec<PromptTokens>> {
        // Start and end token take two places of CLIP's, the end token one of T5's.
        let clip = CLIP_TOKENS - 2;
        let mut all = vec![("CLIP-L", self.clip_l.token_ranges(prompt)?, clip)];
        if let Some(tokenizer) = &self.clip_g {
            all.push(("CLIP-G", tokenizer.token_ranges(prompt)?, clip));
        }
        if let Some((tokenizer, tokens)) = &self.t5 {
            let place = if self.t5_words.is_some() { 0 } else { all.len() };
            all.insert(place, ("T5", tokenizer.token_ranges(prompt)?, tokens.saturating_sub(1)));
        }
        let mut found: Vec<PromptTokens> = vec![];
        for (encoder, ranges, limit) in all {
            match found.last_mut().filter(|last| last.ranges == ranges && last.limit == limit) {
                Some(last) => last.encoders += &format!(", {encoder}"),
                None => found.push(PromptTokens { encoders: encoder.into(), ranges, limit }),
            }
        }
        Ok(found)
    }

    fn spans(&self, names: &[&str]) -> Result<Vec<Option<Range<usize>>>> {
        if let (Some(places), Some((tokenizer, _))) = (&self.t5_words, &self.t5) {
            return tokenizer.token_spans(names, places.clone());
        }
        let spans = self.clip_l.token_spans(names)?;
        Ok(spans.into_iter().map(|span| span.map(|span| span.start - 1..span.end - 1)).collect())
    }
}
