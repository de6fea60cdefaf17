//! The command line: the arguments of each command, and code shared by the two binaries.
//!
//! Exit status: 0 success, 1 failure, 2 wrong usage or configuration.
pub(crate) mod analyze;
mod command;
pub(crate) mod config;
mod drawings;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod maps;
pub(crate) mod prepare;
pub(crate) mod probe;
pub mod train;

use crate::config::{Choice, DeviceChoice, PartPaths, Quantization, TextEncoderKind, WeightType};
use crate::model::adapters::Adapters;
use crate::model::adapters::weighted::{self, WeightedFile};
use crate::model::pipeline::{Pipeline, PipelineOptions};
use crate::model::weights::files::ModelFiles;
use crate::sample::scheduler::Scheduler;
use crate::system::error::{Error, Result};
pub(crate) use crate::system::terminal::{mention, say};
use clap::Args;
pub use command::{Cli, run};
use std::str::FromStr;

/// The model that a command works on, and where.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// Folder of a diffusers pipeline, hf:ORG/NAME@REVISION, or a model in one file, .safetensors or .gguf, on the hub
    /// hf:ORG/NAME/FILE
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// File of a part that the model lacks: vae, clip_l, clip_g, t5 or qwen3, = and its path; or config= and the folder or
    /// hf:ORG/NAME with the tokenizers of a model in one file; may be given many times
    #[arg(long, value_name = "PART=PATH")]
    pub model_file: Vec<String>,
    /// Which weights are taken where there are several: fp16 for *.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// LoRA to put on the model: a .safetensors file of diffusers, PEFT, kohya, ComfyUI or OneTrainer, with a weight if
    /// it is not to count as 1; many may be given, which add up
    #[arg(long, value_name = "F[:WEIGHT]")]
    pub lora: Vec<WeightedFile>,
    /// auto (CUDA if there is one, else the CPU), cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Type of the weights: f32, bf16 or f16 [default: f32 on the CPU, bf16 on CUDA]
    #[arg(long, value_name = "TYPE", value_parser = WeightType::from_name)]
    pub dtype: Option<WeightType>,
    /// Quantise the weights of the blocks and text encoders: q8_0, q6k, q4_k or f8
    #[arg(long, value_name = "FORMAT", value_parser = Quantization::from_name)]
    pub quantize: Option<Quantization>,
    /// Text encoders: clip_l, clip_g, t5, qwen3, separated by commas [default: those the model has, Stable Diffusion 3's t5 left
    /// out]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = TextEncoderKind::from_name)]
    pub text_encoders: Vec<TextEncoderKind>,
    /// Tokens of T5 or Qwen3, or of the zeros in T5's place, as in diffusers' pipeline call; training takes
    /// model.max_sequence_length [default: 256, FLUX 512]
    #[arg(long, value_name = "N", value_parser = parse_sequence_length)]
    pub max_sequence_length: Option<usize>,
}

/// A base model whose weights have not been read, with its LoRA.
pub(crate) struct NamedModel<'a> {
    pub files: ModelFiles,
    pub options: PipelineOptions,
    adapters: Adapters,
    lora: &'a [WeightedFile],
}

impl NamedModel<'_> {
    /// `pipeline`, which is this model's, with the LoRA on it.
    ///
    /// # Errors
    /// The LoRA is of another model.
    pub fn adapted(&self, mut pipeline: Pipeline) -> Result<Pipeline> {
        attach(&mut pipeline, &self.adapters, self.lora)?;
        Ok(pipeline)
    }
}

/// Puts adapters on a pipeline's transformer.
///
/// # Errors
/// They are of another model; the files that they are from are named.
pub(crate) fn attach(pipeline: &mut Pipeline, adapters: &Adapters, files: &[WeightedFile]) -> Result<()> {
    let names: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
    pipeline.transformer.attach(adapters).map_err(|e| Error::file(names.join(", "), e))
}

impl ModelArgs {
    /// Loads the base model with its LoRA; only the first `depth` blocks, where the attention of no other is needed.
    pub fn load(&self, depth: Option<usize>) -> Result<(Pipeline, Scheduler)> {
        let mut model = self.open()?;
        model.options.depth = depth;
        let pipeline = model.adapted(Pipeline::load(&model.files, &model.options)?)?;
        Ok((pipeline, Scheduler::open(&model.files)?))
    }

    /// Finds what the arguments name, and reads the LoRA: one that cannot be read is found before gigabytes are.
    pub fn open(&self) -> Result<NamedModel<'_>> {
        let device = self.device.open()?;
        let adapters = weighted::read_all(&self.lora)?;
        let files = self.files()?;
        let options = PipelineOptions {
            text_encoders: self.text_encoders(&files)?,
            max_sequence_length: self.sequence_length(&files)?,
            dtype: self.dtype.unwrap_or(if device.is_cuda() { WeightType::Bf16 } else { WeightType::F32 }).dtype(),
            device,
            depth: None,
        };
        Ok(NamedModel { files, options, adapters, lora: &self.lora })
    }

    /// The model's files.
    pub fn files(&self) -> Result<ModelFiles> {
        let named = PartPaths::of_arguments(&self.model_file).map_err(Error::Usage)?;
        Ok(ModelFiles::open_with(&self.model, self.variant.as_deref(), &named)?.quantized(self.quantize))
    }

    /// T5's tokens that were asked for, or those of diffusers' pipeline call.
    ///
    /// # Errors
    /// The pipeline is that of no known family.
    pub fn sequence_length(&self, files: &ModelFiles) -> Result<usize> {
        self.max_sequence_length.map_or_else(|| Ok(files.known_pipeline()?.max_sequence_length), Ok)
    }

    /// The text encoders that were asked for, or those that the model has.
    ///
    /// # Errors
    /// Its `model_index.json` cannot be read, or it has none.
    pub fn text_encoders(&self, files: &ModelFiles) -> Result<Vec<TextEncoderKind>> {
        if !self.text_encoders.is_empty() {
            return Ok(self.text_encoders.clone());
        }
        let found = files.text_encoders()?;
        match (found.is_empty(), files.has_files()) {
            (false, _) => Ok(found),
            (true, false) => Err(Error::file(files.path().join("model_index.json"), "lists no CLIP text encoder")),
            (true, true) => {
                let problem = "no text encoder in it: name files of them (--model-file clip_l=FILE, …)";
                Err(Error::file(files.path(), problem))
            }
        }
    }
}

/// The value that `text` stands for, if it is a valid one.
fn parsed<T: FromStr>(text: &str, is_valid: impl Fn(&T) -> bool, expected: &str) -> Result<T, String> {
    text.parse().ok().filter(is_valid).ok_or_else(|| format!("expected {expected}"))
}

/// A side of an image in pixels: a multiple of 16, at most 8192.
fn parse_size(text: &str) -> Result<usize, String> {
    parsed(text, |size| (16..=8192).contains(size) && size % 16 == 0, "a multiple of 16, from 16 to 8192")
}

/// T5's number of tokens: diffusers accepts 512 at most.
fn parse_sequence_length(text: &str) -> Result<usize, String> {
    parsed(text, |tokens| (1..=512).contains(tokens), "a number from 1 to 512")
}

/// A noise level σ.
fn parse_sigma(text: &str) -> Result<f64, String> {
    parsed(text, |sigma| (0.0..=1.0).contains(sigma), "a number from 0 to 1")
}

/// A finite number.
fn parse_number(text: &str) -> Result<f64, String> {
    parsed(text, |number: &f64| number.is_finite(), "a number")
}

/// A finite number above zero.
fn parse_positive(text: &str) -> Result<f64, String> {
    parse_number(text)?;
    parsed(text, |number| *number > 0.0, "a number above 0")
}

/// A finite number that is not negative.
fn parse_not_negative(text: &str) -> Result<f64, String> {
    parse_number(text)?;
    parsed(text, |number| *number >= 0.0, "a number of at least 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert_eq!(parse_size("512"), Ok(512));
        assert!(["0", "100", "x", "16384", "-16"].iter().all(|text| parse_size(text).is_err()));
        assert_eq!((parse_number("-7.5"), parse_not_negative("7.5")), (Ok(-7.5), Ok(7.5)));
        assert!(["-1", "nan", "x"].iter().all(|text| parse_not_negative(text).is_err()));
        assert!(["nan", "inf", "x", ""].iter().all(|text| parse_number(text).is_err()));
    }
}
