//! The sizes of a text embedding, and the part of it that may be non-zero.
use super::TextEmbedding;
use super::tokenizer::CLIP_TOKENS;
use crate::config::TextEncoderKind;
use crate::model::families::pipelines::TextForm;
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::ops::device::upload;
use crate::system::error::{Error, Result};
use candle_core::Device;

/// Sizes of a prompt's embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextShape {
    /// All tokens: CLIP's 77, where there are such, and those of T5 or Qwen3, or zeros in their place.
    pub tokens: usize,
    /// CLIP's tokens: 77, or none where CLIP is used for the pooled embedding alone.
    pub clip_tokens: usize,
    /// The most of the leading tokens that can be word tokens.
    pub words: usize,
    /// Width of a token.
    pub width: usize,
    /// Width of the pooled embedding; 0 where there is none.
    pub pooled: usize,
    /// Sum of the hidden sizes of the CLIPs whose tokens there are; the rest of such a token's width is zero.
    pub clip_width: usize,
    /// Whether the tokens behind CLIP's are computed, rather than zero.
    pub is_filled: bool,
}

#[derive(serde::Deserialize)]
struct ClipSizes {
    hidden_size: usize,
    projection_dim: usize,
}

#[derive(serde::Deserialize)]
struct TransformerSizes {
    joint_attention_dim: usize,
    #[serde(default)]
    pooled_projection_dim: usize,
}

#[derive(serde::Deserialize)]
struct QwenSizes {
    hidden_size: usize,
}

impl TextShape {
    /// Reads the sizes from a model's configurations.
    ///
    /// # Errors
    /// A configuration cannot be read, or the text encoders do not match the transformer.
    pub fn open(files: &ModelFiles, kinds: &[TextEncoderKind], max_sequence_length: usize) -> Result<Self> {
        let TransformerSizes { joint_attention_dim: width, pooled_projection_dim: pooled } =
            files.config(Part::Transformer)?;
        let pipeline = files.known_pipeline()?;
        pipeline.check_encoders(kinds).map_err(|problem| Error::file(files.path(), problem))?;
        let transformer = files.config_path(Part::Transformer);
        sizes::check(&transformer, &[("joint_attention_dim", width)])?;
        let misfit = |key: &str, expected: usize, what: &str, found: usize| {
            Error::file(&transformer, format!("{key} is {expected}, but {what} {found}"))
        };
        let (tokens, words) = (max_sequence_length, pipeline.words);
        let without_clip = Self { tokens, clip_tokens: 0, words, width, pooled, clip_width: 0, is_filled: true };
        if let TextForm::Qwen3 { layers } = pipeline.text {
            let part = Part::Text(TextEncoderKind::Qwen3);
            let QwenSizes { hidden_size } = files.config(part)?;
            sizes::check(&files.config_path(part), &[("hidden_size", hidden_size)])?;
            let (states, found) = (layers.len(), layers.len() * hidden_size);
            if found != width {
                let problem =
                    format!("joint_attention_dim is {width}, but {states} of Qwen3's states are {found} wide");
                return Err(Error::file(transformer, problem));
            }
            return Ok(Self { pooled: 0, ..without_clip });
        }
        sizes::check(&transformer, &[("pooled_projection_dim", pooled)])?;
        let clip = |kind: TextEncoderKind| {
            let part = Part::Text(kind);
            let found: ClipSizes = files.config(part)?;
            let named = [("hidden_size", found.hidden_size), ("projection_dim", found.projection_dim)];
            sizes::check(&files.config_path(part), &named).map(|()| found)
        };
        let clip_l = clip(TextEncoderKind::ClipL)?;
        if pipeline.text == TextForm::T5 {
            return match clip_l.hidden_size {
                found if found == pooled => Ok(without_clip),
                found => Err(misfit("pooled_projection_dim", pooled, "CLIP-L's hidden_size is", found)),
            };
        }
        let clip_g = clip(TextEncoderKind::ClipG)?;
        let clip_width = clip_l.hidden_size + clip_g.hidden_size;
        if clip_width > width {
            let what = "the CLIP text encoders' hidden sizes add up to";
            return Err(misfit("joint_attention_dim", width, what, clip_width));
        }
        let found = clip_l.projection_dim + clip_g.projection_dim;
        if found != pooled {
            let what = "the CLIP text encoders' projection_dim add up to";
            return Err(misfit("pooled_projection_dim", pooled, what, found));
        }
        let is_filled = kinds.contains(&TextEncoderKind::T5);
        Ok(Self { tokens: CLIP_TOKENS + tokens, clip_tokens: CLIP_TOKENS, clip_width, is_filled, ..without_clip })
    }

    /// Rows and columns of the context's leading part that may be non-zero: without T5, only CLIP's.
    pub fn filled(&self) -> (usize, usize) {
        if self.is_filled { (self.tokens, self.width) } else { (self.clip_tokens, self.clip_width) }
    }

    /// Those of T5 or Qwen3, or zeros in their place.
    pub fn tokens_behind_clip(&self) -> usize {
        self.tokens - self.clip_tokens
    }

    /// Trailing tokens of the context that are always zero.
    pub fn zeros(&self) -> usize {
        self.tokens - self.filled().0
    }

    /// The values of one prompt's embedding that may be non-zero: that part of the context, row by row, then the pooled
    /// embedding.
    pub fn compact(&self, embedding: &TextEmbedding) -> Result<Vec<f32>> {
        let (rows, columns) = self.filled();
        let context = embedding.context.narrow(1, 0, rows)?.narrow(2, 0, columns)?;
        let mut values = context.flatten_all()?.to_vec1::<f32>()?;
        values.extend(embedding.pooled.flatten_all()?.to_vec1::<f32>()?);
        Ok(values)
    }

    /// The inverse of [`Self::compact`], bit-exact, as a batch of one.
    ///
    /// # Errors
    /// The number of values is wrong.
    pub fn expand(&self, values: &[f32], device: &Device) -> Result<TextEmbedding> {
        let (rows, columns) = self.filled();
        let (context, pooled) = values.split_at(values.len().min(rows * columns));
        let context = upload(context, (1, rows, columns), device)?;
        let context = context.pad_with_zeros(1, 0, self.tokens - rows)?.pad_with_zeros(2, 0, self.width - columns)?;
        let pooled = upload(pooled, (1, self.pooled), device)?;
        Ok(TextEmbedding { context, pooled, zeros: self.zeros() })
    }
}
