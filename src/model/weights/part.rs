//! The networks that a base model is made of.
use crate::config::{Choice, TextEncoderKind};

/// A network of the pipeline, each with a folder of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The denoiser, in `transformer/`.
    Transformer,
    /// The autoencoder, in `vae/`.
    Vae,
    /// A text encoder; its pipeline says where that lies.
    Text(TextEncoderKind),
}

impl Part {
    /// What its weights file is called: `STEM.safetensors` or `STEM.safetensors.index.json`.
    pub(super) fn stem(self) -> &'static str {
        match self {
            Self::Transformer | Self::Vae => "diffusion_pytorch_model",
            Self::Text(_) => "model",
        }
    }

    /// What people call it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "autoencoder",
            Self::Text(_) => "text encoder",
        }
    }

    /// What settings call it: the key in `[model.files]`.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "vae",
            Self::Text(kind) => kind.name(),
        }
    }
}
