//! `generate`: draws images from prompts.
use super::{ModelArgs, parse_number, parse_size};
use clap::Args;
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff generate --model models/stable-diffusion-3-medium-diffusers --lora runs/sa1b/lora.safetensors \\
    --prompt \"a cat on a bench\" --prompt \"a red bus\" --out images";

/// Draw images from prompts, with or without a LoRA
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What to draw; one image each
    #[arg(long, value_name = "T", required = true, num_args = 1..)]
    pub prompt: Vec<String>,
    /// What not to draw
    #[arg(long, value_name = "T", default_value = "")]
    pub negative: String,
    /// Folder for the images 000000.png, 000001.png, …
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Side of the square images in pixels
    #[arg(long, value_name = "PIXELS", default_value = "1024", value_parser = parse_size)]
    pub size: usize,
    /// Denoising steps
    #[arg(long, value_name = "N", default_value_t = 28, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub steps: u32,
    /// Guidance scale; 1 or less turns guidance off
    #[arg(long, value_name = "SCALE", default_value = "7", value_parser = parse_number)]
    pub guidance: f64,
    /// Seed of the initial noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Initial noise: safetensors with the key latents, [images, 16, h, w]
    #[arg(long, value_name = "F")]
    pub latents: Option<PathBuf>,
}
