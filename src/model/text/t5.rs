//! The T5 encoder, run as in diffusers: on all tokens including padding, without attention mask.
use crate::config::TextEncoderKind;
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use candle_transformers::models::t5::{Config, T5EncoderModel};
use std::path::PathBuf;
use std::sync::Mutex;

/// A T5 encoder of candle-transformers.
pub struct T5Encoder {
    model: T5EncoderModel,
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
        let mut config: Config = files.config(Part::Text(TextEncoderKind::T5))?;
        config.use_cache = false;
        config.is_decoder = false;
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
        let failure = Mutex::new(None);
        let backend = StrictBackend { weights: &weights, failure: &failure };
        let builder = VarBuilder::from_backend(Box::new(backend), dtype, device.clone());
        let loaded = guarded(|| Ok::<_, String>(T5EncoderModel::load(builder, &config)));
        let model = match loaded.map_err(|problem| Error::file(&path, problem))? {
            Ok(model) => model,
            Err(error) => return Err(failure.into_inner().ok().flatten().unwrap_or_else(|| Error::from(error))),
        };
        weights.finish()?;
        let (vocab_size, hidden_size) = (config.vocab_size, config.d_model);
        // T5's activations overflow f16; for that reason transformers keeps parts of it in f32.
        let compute = if compute == DType::F16 { DType::F32 } else { compute };
        Ok(Self { model, vocab_size, hidden_size, compute, device: device.clone(), path })
    }

    /// The last layer's hidden states, f32 `[batch, tokens, hidden]`, of prompts of equal length.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        if let Some(id) = ids.iter().flatten().find(|&&id| id as usize >= self.vocab_size) {
            let problem = format!("vocab_size is {}, but the tokenizer yields token {id}", self.vocab_size);
            return Err(Error::file(&self.path, problem));
        }
        let length = ids.first().map_or(0, Vec::len);
        let ids = Tensor::from_vec(ids.concat(), (ids.len(), length), &self.device)?;
        // `forward` takes `&mut` for a cache that encoders never fill; the clone shares the weights.
        let states = self.model.clone().forward_dt(&ids, Some(self.compute))?;
        Ok(states.to_dtype(DType::F32)?)
    }
}

/// Supplies candle-transformers with tensors of [`Weights`], and keeps the first error, which names file and tensor.
struct StrictBackend<'a> {
    weights: &'a Weights,
    failure: &'a Mutex<Option<Error>>,
}

impl SimpleBackend for StrictBackend<'_> {
    fn get(&self, s: Shape, name: &str, _: candle_nn::Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.weights.get(name, s).map_err(|error| {
            let short = candle_core::Error::Msg(error.to_string());
            if let Ok(mut failure) = self.failure.lock() {
                failure.get_or_insert(error);
            }
            short
        })
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.weights.get_any(name, &Shape::from(())).map_err(candle_core::Error::msg)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.contains(name)
    }
}
