//! What adapter files are made of.
use crate::model::families::names::Release;
use crate::system::error::Error;
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// In whose manner an adapter is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One file for `load_lora_weights`, and for ComfyUI, which maps these names too. The scale is part of B.
    Diffusers,
    /// A folder with `adapter_model.safetensors` and `adapter_config.json`.
    Peft,
    /// One file with the names of the original checkpoint, q, k and v fused, as kohya's trainer writes.
    Comfyui,
}

impl Format {
    /// The file that holds the tensors, where `out` names a folder.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Diffusers => "pytorch_lora_weights.safetensors",
            Self::Peft => "adapter_model.safetensors",
            Self::Comfyui => "lora.safetensors",
        }
    }
}

/// What the metadata of a kohya file says about where the adapter comes from. Nothing in it varies from run to run.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The base model.
    pub release: Option<Release>,
    /// Side of the training images in pixels.
    pub resolution: Option<usize>,
    /// Optimizer steps taken.
    pub steps: Option<u64>,
    /// Seed of the run.
    pub seed: Option<u64>,
    /// Title for people.
    pub title: Option<String>,
}

/// One layer's tensors while a file is read, by their places in the order that its kind of adapter has them.
pub type LayerTensors = BTreeMap<usize, Tensor>;

/// PEFT's configuration of the adapters in a file.
pub struct PeftConfig {
    /// A JSON object.
    pub text: String,
    /// The file that it stands in.
    pub file: PathBuf,
    /// Where in the file it stands.
    pub place: String,
}

impl PeftConfig {
    /// The error for something that it says.
    pub fn error(&self, problem: impl fmt::Display) -> Error {
        Error::file(&self.file, format!("{}{problem}", self.place))
    }
}
