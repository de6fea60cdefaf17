//! `probe`: the attention of one image to a prompt.
use super::{LoadedModel, ModelArgs, mention, parse_sigma, parse_size};
use crate::error::Result;
use crate::model::mmdit::image_to_text_logits;
use crate::model::weights;
use crate::output_folder::OutputFolder;
use crate::report::heatmap::write_word_overlays;
use crate::sample::generate::read_latents;
use crate::sample::image::{read_square, to_rgb8};
use crate::sample::noise::normal;
use crate::sample::scheduler::Scheduler;
use crate::terminal::printable_path;
use candle_core::{DType, Device, Tensor};
use clap::Args;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// First element of the noise stream of a probe.
const NOISE: u64 = 0x0070_726f_6265;

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

/// Noises the image's latent to `sigma`, runs the blocks below the layer, and writes what its image queries see.
pub fn run(args: &ProbeArgs) -> Result<()> {
    // What is small is looked at before gigabytes are.
    let image = read_square(&args.image, args.size, &Device::Cpu)?;
    args.model.check_layer("--layer", args.layer)?;
    let _held = OutputFolder::hold(&args.out)?;
    let LoadedModel { files, pipeline, device } = args.model.load_up_to(args.layer)?;
    let transformer = &pipeline.transformer;
    let shape = pipeline.latent_shape(args.size)?;
    let image = image.to_device(&device)?;
    let noise = match &args.noise {
        Some(file) => read_latents(file, "noise", Some(1), shape, &device)?,
        None => normal(args.seed, &[NOISE], (1, shape.0, shape.1, shape.2), &device)?,
    };
    let latents = ((pipeline.vae.encode(&image)? * (1.0 - args.sigma))? + (noise * args.sigma)?)?;
    let timestep = Tensor::full(Scheduler::open(&files)?.timestep(args.sigma as f32), 1, &Device::Cpu)?;
    let text = pipeline.text_encoders.encode(&[&args.prompt])?;
    let embedded = transformer.embedding.embed(&latents, &timestep, &text)?;
    let (rows, columns) = embedded.grid;
    let probe = transformer.probe(&embedded, args.layer)?;
    let heads = transformer.config.num_attention_heads;
    let on_cpu = |t: Tensor| t.to_dtype(DType::F32)?.to_device(&Device::Cpu);
    let logits = on_cpu(image_to_text_logits(&probe, heads)?.reshape((heads, (), rows, columns))?)?;
    let probability = on_cpu(probe.probability(heads)?.squeeze(0)?.t()?.contiguous()?.reshape(((), rows, columns))?)?;

    let file = args.out.join("attention.safetensors");
    let tensors = BTreeMap::from([("logits".into(), logits), ("probability".into(), probability.clone())]);
    weights::write(&file, &tensors, &BTreeMap::new())?;
    mention(&printable_path(&file));
    let Some(picture) = to_rgb8(&image)?.pop() else { return Ok(()) };
    let words: Vec<&str> = args.prompt.split_whitespace().collect();
    let spans = pipeline.text_encoders.token_spans(&words)?;
    let places: Vec<_> = words.into_iter().zip(spans).collect();
    for (word, _) in places.iter().filter(|(_, span)| span.is_none()) {
        tracing::warn!("\"{word}\" does not fit into the prompt's tokens; no picture of it");
    }
    for file in write_word_overlays(&args.out, &picture, &probability, &places)? {
        mention(&printable_path(&file));
    }
    Ok(())
}
