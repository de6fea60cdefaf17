//! Files of learnt prompts, which replace a prompt's embedding.
use super::{TextEmbedding, TextShape};
use crate::model::text::tokenizer::CLIP_TOKENS;
use crate::model::weights;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the tensors `tokens` `[tokens, width]` and `pooled` `[width]`.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, tokens: &Tensor, pooled: &Tensor) -> Result<()> {
    let on_cpu = |tensor: &Tensor| tensor.detach().to_device(&Device::Cpu);
    let tensors = BTreeMap::from([("tokens".to_string(), on_cpu(tokens)?), ("pooled".to_string(), on_cpu(pooled)?)]);
    weights::write(file, &tensors, &BTreeMap::new())
}

/// Reads a file of [`write()`] as a batch of one; `shape` is the model's embedding shape.
///
/// # Errors
/// The file cannot be read, or a tensor is missing or of another shape.
pub fn read(file: &Path, shape: TextShape, device: &Device) -> Result<TextEmbedding> {
    let mut tensors = weights::read_all(file)?;
    let mut take = |name: &str, expected: &[usize]| -> Result<Tensor> {
        let Some(tensor) = tensors.remove(name) else {
            return Err(Error::file(file, format!("no learnt prompt: it has no tensor {name}")));
        };
        match tensor.dims() {
            dims if dims == expected => Ok(tensor.to_dtype(DType::F32)?.unsqueeze(0)?.to_device(device)?),
            [tokens, width] if name == "tokens" && *width == shape.width && *tokens > CLIP_TOKENS => {
                let (wanted, hint) = (shape.tokens, tokens - CLIP_TOKENS);
                let problem =
                    format!("a prompt of {tokens} tokens, expected {wanted}: --max-sequence-length {hint} fits");
                Err(Error::file(file, problem))
            }
            dims => Err(Error::file(file, format!("tensor {name} has shape {dims:?}, expected {expected:?}"))),
        }
    };
    let context = take("tokens", &[shape.tokens, shape.width])?;
    Ok(TextEmbedding { context, pooled: take("pooled", &[shape.pooled])?, zeros: 0 })
}
