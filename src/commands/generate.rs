//! `generate`: draws images from prompts.
use super::drawings::{self, content, key};
use super::{LoadedModel, ModelArgs, mention, parse_not_negative, parse_number, parse_positive, parse_size};
use crate::config::BLUR;
use crate::error::Result;
use crate::model::mmdit::Blur;
use crate::model::text::prompt_file;
use crate::output_folder::OutputFolder;
use crate::paths::exists;
use crate::sample::generate::{Conditions, PerturbedGuidance, SamplingOptions, initial_latents, read_latents};
use crate::sample::image::{to_rgb8, write_png};
use crate::sample::scheduler::Scheduler;
use crate::terminal::{printable_line, printable_path};
use clap::Args;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff generate --model models/stable-diffusion-3-medium-diffusers --lora runs/sa1b/lora.safetensors \\
    --prompt \"a cat on a bench\" --prompt \"a red bus\" --out images";

/// Draw images from prompts, with or without a LoRA
///
/// The same command goes on where it was stopped: images that are in the folder are not drawn again.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What to draw; one image each
    #[arg(long, value_name = "T", required = true, num_args = 1..)]
    pub prompt: Vec<String>,
    /// Prompt that a run learnt, its prompt.safetensors: the model is told it in place of every --prompt
    #[arg(long, value_name = "F")]
    pub prompt_tokens: Option<PathBuf>,
    /// What not to draw
    #[arg(long, value_name = "T", default_value = "")]
    pub negative: String,
    /// Folder for the images 000000.png, 000001.png, …, and captions.json, which has the prompt of each
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
    /// Scale of guidance away from what is drawn with one block's attention to the text blurred; 0 turns it off
    #[arg(long, value_name = "SCALE", default_value = "0", value_parser = parse_not_negative)]
    pub perturb_scale: f64,
    /// The block whose attention that is, counted from 0: the expert
    #[arg(long, value_name = "BLOCK", default_value_t = 9)]
    pub perturb_layer: usize,
    /// How far that blur reaches: standard deviation in image tokens
    #[arg(long, value_name = "TOKENS", default_value_t = BLUR, value_parser = parse_positive)]
    pub perturb_sigma: f64,
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
    if args.perturb_scale > 0.0 {
        args.model.check_layer("--perturb-layer", args.perturb_layer)?;
    }
    let record = record(args)?;
    let _held = OutputFolder::hold(&args.out)?;
    let is_longer = drawings::check(&args.out, &record)?;
    let LoadedModel { files, pipeline, device } = args.model.load()?;
    let shape = pipeline.latent_shape(args.size)?;
    let scheduler = Scheduler::open(&files)?;
    let given = match &args.latents {
        Some(file) => Some(read_latents(file, "latents", Some(args.prompt.len()), shape, &device)?),
        None => None,
    };
    let blur = Blur { layer: args.perturb_layer, sigma: args.perturb_sigma };
    let options = SamplingOptions {
        steps: args.steps as usize,
        guidance: args.guidance,
        perturbed: PerturbedGuidance::new(args.perturb_scale, blur),
        progress: std::io::stderr().is_terminal(),
    };
    let learnt = match &args.prompt_tokens {
        Some(file) => Some(prompt_file::read(file, pipeline.text_encoders.shape(), &device)?),
        None => None,
    };
    let negative = pipeline.text_encoders.encode(&[&args.negative])?;
    if !is_longer {
        drawings::describe(&args.out, &record, args.prompt.iter().map(String::as_str))?;
    }
    for (index, prompt) in args.prompt.iter().enumerate() {
        let file = args.out.join(format!("{}.png", key(index)));
        if exists(&file)? {
            mention(&format!("{}  was there: {}", printable_path(&file), printable_line(prompt)));
            continue;
        }
        let positive = match &learnt {
            Some(learnt) => learnt.clone(),
            None => pipeline.text_encoders.encode(&[prompt])?,
        };
        let noise = match &given {
            Some(latents) => latents.narrow(0, index, 1)?,
            None => initial_latents(args.seed, index, 1, shape, &device)?,
        };
        let conditions = Conditions { positive: &positive, negative: &negative };
        let latents = options.run(&scheduler, &noise, &conditions, |latents, timestep, text, blur| {
            pipeline.velocity(latents, timestep, text, blur)
        })?;
        for image in to_rgb8(&pipeline.vae.decode(&latents)?)? {
            write_png(&file, &image)?;
        }
        mention(&format!("{}  {}", printable_path(&file), printable_line(prompt)));
    }
    Ok(())
}

/// All that an image depends on, but where the model lies in memory.
fn record(args: &GenerateArgs) -> Result<Value> {
    let ModelArgs { model, lora, dtype, text_encoders, max_sequence_length, .. } = &args.model;
    Ok(json!({
        "model": model,
        "lora": lora.as_deref().map(content).transpose()?,
        "dtype": dtype,
        "text_encoders": text_encoders,
        "max_sequence_length": max_sequence_length,
        "negative": args.negative,
        "size": args.size,
        "steps": args.steps,
        "guidance": args.guidance,
        "perturb": (args.perturb_scale > 0.0).then_some([args.perturb_scale, args.perturb_layer as f64, args.perturb_sigma]),
        "seed": args.seed,
        "latents": args.latents.as_deref().map(content).transpose()?,
        "prompt_tokens": args.prompt_tokens.as_deref().map(content).transpose()?,
        "prompts": args.prompt,
    }))
}
