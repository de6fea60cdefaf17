//! `probe`: the attention of one image to a prompt.
use super::{ModelArgs, parse_size};
use clap::Args;
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff probe --model models/stable-diffusion-3-medium-diffusers --image cat.jpg \\
    --prompt \"a cat on a bench\" --layer 9 --out attention";

/// Write the image-to-text attention of one block: attention.safetensors, and a picture for each word
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct ProbeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Photograph (JPEG or PNG)
    #[arg(long, value_name = "F")]
    pub image: PathBuf,
    /// Words to look for
    #[arg(long, value_name = "T")]
    pub prompt: String,
    /// Block, counted from 0
    #[arg(long, value_name = "N")]
    pub layer: usize,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Side in pixels of the square that the image is resized to
    #[arg(long, value_name = "PIXELS", default_value = "1024", value_parser = parse_size)]
    pub size: usize,
    /// Share of noise in the latent, from 0 to 1
    #[arg(long, value_name = "SIGMA", default_value = "0.515", value_parser = parse_sigma)]
    pub sigma: f64,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Noise: safetensors with the key noise, [1, 16, h, w]
    #[arg(long, value_name = "F")]
    pub noise: Option<PathBuf>,
}

fn parse_sigma(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|sigma| (0.0..=1.0).contains(sigma)).ok_or_else(|| "expected a number from 0 to 1".into())
}
