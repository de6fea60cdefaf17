//! The T5 encoder, run as in diffusers: on all tokens including padding, without attention mask.
use super::t5_stack::{T5Config, T5Stack};
use super::tokenizer::check_ids;
use crate::config::TextEncoderKind;
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;

/// A T5 encoder.
pub struct T5Encoder {
    model: T5Stack,
    vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    compute: DType,
    device: Device,
    /// The source of the sizes, for error messages.
    path: PathBuf,
}

impl T5Encoder {
    pub fn load(files: &ModelFiles, dtype: DType, compute: DType, device: &Device) -> Result<Self> {
        let config: T5Config = files.config(Part::Text(TextEncoderKind::T5))?;
        let path = files.config_path(Part::Text(TextEncoderKind::T5));
        let named = [
            ("vocab_size", config.vocab_size),
            ("d_model", config.d_model),
            ("d_kv", config.d_kv),
            ("d_ff", config.d_ff),
            ("num_layers", config.num_layers),
            ("num_heads", config.num_heads),
            ("relative_attention_num_buckets", config.relative_attention_num_buckets),
            ("relative_attention_max_distance", config.relative_attention_max_distance),
        ];
        sizes::check(&path, &named)?;
        sizes::check_eps(&path, "layer_norm_epsilon", config.layer_norm_epsilon)?;
        if config.num_heads == 0 || config.relative_attention_num_buckets < 4 {
            let problem = "num_heads must be at least 1 and relative_attention_num_buckets at least 4";
            return Err(Error::file(path, problem));
        }
        let weights = files.weights(Part::Text(TextEncoderKind::T5), dtype, device)?;
        // The embedding table has two names; transformers writes either or both.
        if weights.contains("shared.weight") {
            weights.ignore("encoder.embed_tokens.weight");
        }
        let (vocab_size, hidden_size) = (config.vocab_size, config.d_model);
        let model = T5Stack::load(&weights, config)?;
        weights.finish()?;
        // T5's activations overflow f16; for that reason transformers keeps parts of it in f32.
        let compute = if compute == DType::F16 { DType::F32 } else { compute };
        Ok(Self { model, vocab_size, hidden_size, compute, device: device.clone(), path })
    }

    /// The last layer's hidden states, f32 `[batch, tokens, hidden]`, of prompts of equal length.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        check_ids(&self.path, self.vocab_size, ids.iter().flatten())?;
        let length = ids.first().map_or(0, Vec::len);
        let ids = Tensor::from_vec(ids.concat(), (ids.len(), length), &self.device)?;
        Ok(self.model.forward(&ids, self.compute)?.to_dtype(DType::F32)?)
    }
}
