//! `generate`: draws images from prompts.
use super::drawings::{self, content, image_file, lora_content};
use super::{ModelArgs, NamedModel, mention, parse_not_negative, parse_number, parse_positive, parse_size};
use crate::config::BLUR;
use crate::distributed::Collective;
use crate::model::families::{self, Blur, PipelineNames, TransformerConfig};
use crate::model::pipeline::{Pipeline, PipelineOptions};
use crate::model::text::{TextEmbedding, TextEncoders, TextShape, prompt_file};
use crate::model::vae::VaeConfig;
use crate::sample::generate::{PerturbedGuidance, PromptEmbeddings, SamplingOptions, initial_latents, read_latents};
use crate::sample::image::{to_rgb8, write_png};
use crate::sample::scheduler::Scheduler;
use crate::system::error::Result;
use crate::system::output_folder::OutputFolder;
use crate::system::paths::exists;
use crate::system::printable::{printable_line, printable_path};
use crate::system::process::release_freed_memory;
use candle_core::Tensor;
use clap::Args;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::mem;
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
    /// Denoising steps [default: 28, FLUX.2 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub steps: Option<u32>,
    /// Guidance scale; 1 or less turns guidance off. FLUX.1-dev is told it and runs once, FLUX.1-schnell has none
    /// [default: 7, FLUX.1 3.5, FLUX.2 4]
    #[arg(long, value_name = "SCALE", value_parser = parse_number)]
    pub guidance: Option<f64>,
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
    /// Initial noise: safetensors with the key latents, [images, 16, h, w], for FLUX.2 packed, [images, 128, h, w]
    #[arg(long, value_name = "F")]
    pub latents: Option<PathBuf>,
}

/// Number of images whose prompts are encoded at a time; an embedding takes 0.64 MB of host memory, with T5 5.5 MB.
const PROMPTS_AT_ONCE: usize = 256;

/// Draws images one by one, so that memory does not depend on their number; an image depends on its prompt, the seed
/// and its own number alone.
///
/// Several processes take turns with the images. Text encoders and transformer are never in memory together, and the
/// transformer is freed before the last image is decoded.
pub fn run(args: &GenerateArgs, processes: &dyn Collective) -> Result<()> {
    if args.perturb_scale > 0.0 {
        let files = args.model.files()?;
        families::of(&files)?.config(&files)?.check_block("--perturb-layer", args.perturb_layer)?;
    }
    let record = record(args)?;
    let is_main = processes.is_main();
    let _held = is_main.then(|| OutputFolder::hold(&args.out)).transpose()?;
    let mut is_to_be_described = is_main && !drawings::check(&args.out, &record)?;
    let model = args.model.open()?;
    let sampler = Sampler::open(args, &model)?;
    let missing = shared(if is_main { missing(args)? } else { vec![] }, processes)?;
    // Several processes write their first images at any time: the record is there before.
    if (missing.is_empty() || processes.size() > 1) && mem::take(&mut is_to_be_described) {
        drawings::describe(&args.out, &record)?;
    }
    processes.barrier()?;
    for images in missing.chunks(PROMPTS_AT_ONCE) {
        let (texts, negative) = sampler.encode(images)?;
        let pipeline = model.adapted(Pipeline::load_for_drawing(&model.files, &model.options)?)?;
        if mem::take(&mut is_to_be_described) {
            drawings::describe(&args.out, &record)?;
        }
        let Some(((last, text), others)) = texts.split_last() else { continue };
        for (image, text) in others {
            write(args, *image, &pipeline.vae.decode(&sampler.draw(&pipeline, *image, text, &negative)?)?)?;
        }
        let latents = sampler.draw(&pipeline, *last, text, &negative)?;
        let vae = pipeline.vae;
        release_freed_memory();
        write(args, *last, &vae.decode(&latents)?)?;
    }
    // Rank 0 holds the folder until all are done.
    processes.barrier()
}

/// This process's share of the `missing` images that rank 0 has found.
fn shared(missing: Vec<usize>, processes: &dyn Collective) -> Result<Vec<usize>> {
    let numbers: Vec<u8> = missing.iter().flat_map(|number| (*number as u64).to_le_bytes()).collect();
    let numbers = processes.broadcast_bytes(&numbers)?;
    let (all, _) = numbers.as_chunks::<8>();
    let own = all.iter().skip(processes.rank()).step_by(processes.size());
    Ok(own.map(|number| u64::from_le_bytes(*number) as usize).collect())
}

/// The images missing in the folder, by number.
fn missing(args: &GenerateArgs) -> Result<Vec<usize>> {
    let mut missing = vec![];
    for (index, prompt) in args.prompt.iter().enumerate() {
        let file = image_file(&args.out, index);
        match exists(&file)? {
            true => mention(&format!("{}  was there: {}", printable_path(&file), printable_line(prompt))),
            false => missing.push(index),
        }
    }
    Ok(missing)
}

/// Writes a decoded image.
fn write(args: &GenerateArgs, index: usize, decoded: &Tensor) -> Result<()> {
    let file = image_file(&args.out, index);
    for image in to_rgb8(decoded)? {
        write_png(&file, &image)?;
    }
    mention(&format!("{}  {}", printable_path(&file), printable_line(&args.prompt[index])));
    Ok(())
}

/// The inputs of the images, without the networks.
struct Sampler<'a> {
    args: &'a GenerateArgs,
    model: &'a NamedModel<'a>,
    scheduler: Scheduler,
    options: SamplingOptions,
    /// What the model is told, if it embeds its guidance scale.
    guidance_scale: Option<f64>,
    /// Shape of one image's latents.
    shape: (usize, usize, usize),
    text_shape: TextShape,
    /// Initial latents from a file.
    given: Option<Tensor>,
    /// A learnt prompt from a file.
    learnt: Option<TextEmbedding>,
}

/// A prompt's embedding in the form of [`TextShape::compact`]; nothing where a learnt prompt takes its place.
type Text = Vec<f32>;

impl<'a> Sampler<'a> {
    fn open(args: &'a GenerateArgs, model: &'a NamedModel) -> Result<Self> {
        let NamedModel { files, options: PipelineOptions { text_encoders, max_sequence_length, device, .. }, .. } =
            model;
        let (config, pipeline) = (families::of(files)?.config(files)?, files.known_pipeline()?);
        let shape = config.latent_shape(&VaeConfig::open(files)?, args.size)?;
        let (passes, guidance_scale) = config.guidance.scales(guidance(args, &config));
        let text_shape = TextShape::open(files, text_encoders, *max_sequence_length)?;
        let blur = Blur { layer: args.perturb_layer, sigma: args.perturb_sigma };
        let given = |file: &PathBuf| read_latents(file, "latents", Some(args.prompt.len()), shape, device);
        let learnt = |file: &PathBuf| prompt_file::read(file, text_shape, device);
        Ok(Self {
            args,
            model,
            scheduler: Scheduler::open(files)?,
            options: SamplingOptions {
                steps: steps(args, pipeline),
                guidance: passes,
                perturbed: PerturbedGuidance::new(args.perturb_scale, blur),
                progress: std::io::stderr().is_terminal(),
            },
            guidance_scale,
            shape,
            text_shape,
            given: args.latents.as_ref().map(given).transpose()?,
            learnt: args.prompt_tokens.as_ref().map(learnt).transpose()?,
        })
    }

    /// The embeddings of these images' prompts, by number, and of the negative prompt. The text encoders are in memory
    /// only during the call.
    fn encode(&self, images: &[usize]) -> Result<(Vec<(usize, Text)>, Text)> {
        let PipelineOptions { text_encoders, max_sequence_length, dtype, device, .. } = &self.model.options;
        let encoders = TextEncoders::load(&self.model.files, text_encoders, *max_sequence_length, *dtype, device)?;
        let encode = |prompt: &str| self.text_shape.compact(&encoders.encode(&[prompt])?);
        let text = |image: usize| match &self.learnt {
            Some(_) => Ok(vec![]),
            None => encode(&self.args.prompt[image]),
        };
        let texts = images.iter().map(|&image| Ok((image, text(image)?))).collect::<Result<_>>()?;
        let negative = encode(&self.args.negative)?;
        drop(encoders);
        release_freed_memory();
        Ok((texts, negative))
    }

    /// The latents of an image.
    fn draw(&self, pipeline: &Pipeline, image: usize, positive: &[f32], negative: &[f32]) -> Result<Tensor> {
        let device = &pipeline.device;
        let positive = match &self.learnt {
            Some(learnt) => learnt.clone(),
            None => self.text_shape.expand(positive, device)?,
        };
        let negative = self.text_shape.expand(negative, device)?;
        let noise = match &self.given {
            Some(latents) => latents.narrow(0, image, 1)?,
            None => initial_latents(self.args.seed, image, 1, self.shape, device)?,
        };
        let conditions = PromptEmbeddings { positive: &positive, negative: &negative };
        let image_tokens = pipeline.transformer.config.image_tokens(self.shape);
        self.options.run(&self.scheduler, &noise, image_tokens, &conditions, |latents, timestep, text, blur| {
            pipeline.transformer.forward(latents, timestep, text, blur, self.guidance_scale)
        })
    }
}

/// The guidance scale that was asked for, or the model's usual one.
fn guidance(args: &GenerateArgs, config: &TransformerConfig) -> f64 {
    args.guidance.unwrap_or(config.usual_guidance_scale)
}

/// The number of steps that was asked for, or the model's usual one.
fn steps(args: &GenerateArgs, pipeline: &PipelineNames) -> usize {
    args.steps.map_or(pipeline.steps, |steps| steps as usize)
}

/// Everything that an image depends on, except the device and where the model is stored.
fn record(args: &GenerateArgs) -> Result<Value> {
    let ModelArgs { model, model_file, lora, dtype, quantize, text_encoders, .. } = &args.model;
    let files = args.model.files()?;
    Ok(json!({
        "model": model,
        "model_files": (!model_file.is_empty()).then_some(model_file),
        "lora": lora_content(lora)?,
        "dtype": dtype,
        "quantize": quantize,
        "text_encoders": text_encoders,
        "max_sequence_length": args.model.sequence_length(&files)?,
        "negative": args.negative,
        "size": args.size,
        "steps": steps(args, files.known_pipeline()?),
        "guidance": guidance(args, &families::of(&files)?.config(&files)?),
        "perturb": (args.perturb_scale > 0.0).then_some([args.perturb_scale, args.perturb_layer as f64, args.perturb_sigma]),
        "seed": args.seed,
        "latents": args.latents.as_deref().map(content).transpose()?,
        "prompt_tokens": args.prompt_tokens.as_deref().map(content).transpose()?,
        "prompts": args.prompt,
    }))
}
