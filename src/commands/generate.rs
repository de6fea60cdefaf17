//! `generate`: draws images from prompts.
use super::{LoadedModel, ModelArgs, parse_number, parse_size, say};
use crate::error::Result;
use crate::sample::generate::{Conditions, SamplingOptions, initial_latents, read_latents};
use crate::sample::image::{to_rgb8, write_png};
use crate::sample::scheduler::Scheduler;
use clap::Args;
use std::io::IsTerminal;
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

/// Draws the images one by one, so that memory does not depend on their number; an image depends on its prompt, the
/// seed and its own number alone.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let LoadedModel { files, pipeline, device } = args.model.load()?;
    let shape = pipeline.latent_shape(args.size)?;
    let scheduler = Scheduler::open(&files)?;
    let given = match &args.latents {
        Some(file) => Some(read_latents(file, "latents", Some(args.prompt.len()), shape, &device)?),
        None => None,
    };
    let options = SamplingOptions {
        steps: args.steps as usize,
        guidance: args.guidance,
        progress: std::io::stderr().is_terminal(),
    };
    let negative = pipeline.text_encoders.encode(&[&args.negative])?;
    for (index, prompt) in args.prompt.iter().enumerate() {
        let positive = pipeline.text_encoders.encode(&[prompt])?;
        let noise = match &given {
            Some(latents) => latents.narrow(0, index, 1)?,
            None => initial_latents(args.seed, index, 1, shape, &device)?,
        };
        let conditions = Conditions { positive: &positive, negative: &negative };
        let latents = options.run(&scheduler, &noise, &conditions, |latents, timestep, text| {
            pipeline.transformer.forward(latents, timestep, &text.context, &text.pooled)
        })?;
        let file = args.out.join(format!("{index:06}.png"));
        for image in to_rgb8(&pipeline.vae.decode(&latents)?)? {
            write_png(&file, &image)?;
        }
        say(&format!("{}  {prompt}", file.display()))?;
    }
    Ok(())
}
