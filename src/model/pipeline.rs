//! A base model's networks together: text encoders, autoencoder and denoiser.
use super::text::TextEncoders;
use super::vae::Vae;
use crate::config::{ModelConfig, TextEncoderKind};
use crate::model::families::{self, Transformer};
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};
use candle_core::{DType, Device};

/// The networks of a pipeline, all frozen; adapters are attached to `transformer`.
pub struct Pipeline {
    /// The text encoders that were asked for.
    pub text_encoders: TextEncoders,
    /// The autoencoder.
    pub vae: Vae,
    /// The denoiser.
    pub transformer: Transformer,
    /// Where they all are.
    pub device: Device,
}

/// Which of a base model's networks to load, and how.
#[derive(Clone, Debug)]
pub struct PipelineOptions {
    /// Which text encoders are loaded.
    pub text_encoders: Vec<TextEncoderKind>,
    /// T5's tokens, or the zeros that stand in for them.
    pub max_sequence_length: usize,
    /// Type of the frozen weights in memory; the autoencoder's are always f32.
    pub dtype: DType,
    /// Where the weights go.
    pub device: Device,
    /// Only so many of the denoiser's blocks, the first: for looking at attention, not for drawing.
    pub depth: Option<usize>,
}

impl PipelineOptions {
    /// As a run's configuration says.
    pub fn of(config: &ModelConfig, device: &Device) -> Self {
        Self {
            text_encoders: config.text_encoders.clone(),
            max_sequence_length: config.max_sequence_length,
            dtype: config.dtype.dtype(),
            device: device.clone(),
            depth: None,
        }
    }
}

impl Pipeline {
    /// Loads all networks.
    ///
    /// # Errors
    /// A file is missing, damaged, or does not fit its config.
    pub fn load(files: &ModelFiles, options: &PipelineOptions) -> Result<Self> {
        families::of(files)?;
        let PipelineOptions { text_encoders, max_sequence_length, dtype, device, .. } = options;
        let encoders = TextEncoders::load(files, text_encoders, *max_sequence_length, *dtype, device)?;
        Self::with(files, options, encoders, Vae::load(files, device)?)
    }

    /// As `load`, but of the text encoders only the tokenizers and of the autoencoder only the sizes: what needs them
    /// comes from a cache.
    pub fn load_without_encoders(files: &ModelFiles, options: &PipelineOptions) -> Result<Self> {
        Self::with(files, options, tokenizers(files, options)?, Vae::without_weights(files)?)
    }

    /// As `load`, but for drawing from prompts that have been encoded: of the text encoders only the tokenizers, of the
    /// autoencoder only the decoder.
    pub fn load_for_drawing(files: &ModelFiles, options: &PipelineOptions) -> Result<Self> {
        let encoders = tokenizers(files, options)?;
        Self::with(files, options, encoders, Vae::load(files, &options.device)?.without_encoder())
    }

    fn with(files: &ModelFiles, options: &PipelineOptions, text_encoders: TextEncoders, vae: Vae) -> Result<Self> {
        let PipelineOptions { dtype, device, depth, .. } = options;
        let transformer = families::of(files)?.load(files, *depth, *dtype, device)?;
        let pipeline = Self { text_encoders, vae, transformer, device: device.clone() };
        let (latents, channels) = (pipeline.vae.config().channels(), pipeline.transformer.config.in_channels);
        if latents != channels {
            return Err(Error::file(
                files.config_path(Part::Transformer),
                format!("in_channels is {channels}, but the autoencoder has {latents} latent channels"),
            ));
        }
        Ok(pipeline)
    }

    /// (channels, height, width) of the latents of a square image of `size` pixels.
    ///
    /// # Errors
    /// As [`families::TransformerConfig::latent_shape`].
    pub fn latent_shape(&self, size: usize) -> Result<(usize, usize, usize)> {
        self.transformer.config.latent_shape(self.vae.config(), size)
    }
}

/// The text encoders without their weights.
fn tokenizers(files: &ModelFiles, options: &PipelineOptions) -> Result<TextEncoders> {
    let PipelineOptions { text_encoders, max_sequence_length, device, .. } = options;
    TextEncoders::without_weights(files, text_encoders, *max_sequence_length, device)
}
