//! What a file is that holds no model, or another.
use super::Weights;
use super::gguf;
use crate::system::error::{Error, Result};
use crate::system::{file_kind, patience};
use std::io::Read;
use std::path::Path;

/// Names of pickles: PyTorch's files, which can hold any program and run it when they are read.
const PICKLES: [&str; 5] = ["ckpt", "pt", "pth", "bin", "pkl"];

/// # Errors
/// The file is of no kind that can hold tensors: says of which, and what to do.
pub(super) fn check_kind(file: &Path) -> Result<()> {
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
    if PICKLES.contains(&extension.as_str()) {
        let problem = "a pickle of PyTorch, which can run any program when it is read, and is not read here: take the \
                       .safetensors of the model, or convert it (torch.load with weights_only=True, then \
                       safetensors.torch.save_file)";
        return Err(Error::file(file, problem));
    }
    let mut start = vec![];
    let opened = patience::open(file).map_err(|e| Error::file(file, e))?;
    opened.take(512).read_to_end(&mut start).map_err(|e| Error::file(file, e))?;
    match file_kind::of(&start) {
        Some(kind) => Err(Error::file(file, kind)),
        None if start.starts_with(gguf::MAGIC) && !gguf::is_named_so(file) => {
            Err(Error::file(file, "a GGUF file: its name must end in .gguf"))
        }
        None if extension != "safetensors" && !gguf::is_named_so(file) => {
            let problem = "not a folder in the diffusers layout, and no file of tensors (.safetensors, .gguf)";
            Err(Error::file(file, problem))
        }
        None => Ok(()),
    }
}

/// What a file is by its tensors' names, for errors.
pub(super) fn what_is(weights: &Weights) -> String {
    let names = weights.names();
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    let kinds = [
        ("lora_", "it is a LoRA, which goes on a model (lora.init, --lora)"),
        ("input_blocks.", "it is a UNet of Stable Diffusion 1, 2 or XL, which are not trained here"),
        ("down_blocks.0.attentions.", "it is a UNet of Stable Diffusion 1, 2 or XL, which are not trained here"),
        ("distilled_guidance_layer.", "it is Chroma, which is not trained here"),
        ("joint_blocks.", "it is Stable Diffusion 3"),
        ("vector_in.", "it is FLUX.1"),
        ("double_stream_modulation_img.", "it is FLUX.2"),
        ("embeddings.token_embedding.", "it is a CLIP text encoder"),
        ("SelfAttention.", "it is a T5 text encoder"),
        ("enc.blk.", "it is a T5 text encoder"),
        ("self_attn.q_norm.", "it is a Qwen3 text encoder"),
        ("attn_q_norm.", "it is a Qwen3 text encoder"),
        ("decoder.conv_in.", "it is an autoencoder"),
    ];
    match (kinds.iter().find(|(part, _)| has(part)), names.first()) {
        (Some((_, kind)), _) => (*kind).to_string(),
        (None, Some(first)) => format!("its tensors are called {first} and the like"),
        (None, None) => "it has no tensors".to_string(),
    }
}
