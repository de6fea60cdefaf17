//! `probe`: the attention of an image, or of a folder of images, to a prompt.
use super::maps::{LayerList, MapArgs, NormalizeArgs};
use super::{ModelArgs, caption_of, mention, parse_sigma, parse_size};
use crate::data::codec::resize::bilinear;
use crate::data::sources::captions::{Captions, Columns};
use crate::eval::segmentation::Files;
use crate::model::families::{Probe, mean_logits, mean_probability};
use crate::model::pipeline::Pipeline;
use crate::model::weights;
use crate::report::heatmap::{sheet, write_word_overlays};
use crate::sample::generate::read_latents;
use crate::sample::image::{read_rgb8, to_rgb8, to_tensor, write_png};
use crate::sample::noise::normal;
use crate::system::error::{Error, Result};
use crate::system::output_folder::OutputFolder;
use crate::system::printable::printable_path;
use crate::system::whole_file::{folder_of, sweep};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use image::RgbImage;
use std::path::{Path, PathBuf};

/// First key of a probe's noise stream.
const NOISE: u64 = u64::from_be_bytes(*b"\0\0\0probe");

const EXAMPLE: &str = "Examples:
  seg4diff probe --model models/stable-diffusion-3-medium-diffusers --image cat.jpg \\
    --prompt \"a cat on a bench\" --layer 9 --out attention
  seg4diff probe --model models/stable-diffusion-3-medium-diffusers --images photographs \\
    --captions captions.json --layer 8,9,10 --out attention";

/// Show where a block's image positions look at the words of a prompt: a picture for each word, and
/// attention.safetensors
///
/// With --images, the same for every image of a folder: NAME.png, a sheet of the image and its pictures in the order of
/// the words, and these pictures in the folder NAME.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct ProbeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Photograph (JPEG, PNG, WebP, TIFF, BMP, PNM or GIF)
    #[arg(long, value_name = "F", required_unless_present = "images")]
    pub image: Option<PathBuf>,
    /// Instead: a folder of photographs, its subfolders too
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    pub images: Option<PathBuf>,
    /// Words to look for
    #[arg(long, value_name = "T", required_unless_present = "captions")]
    pub prompt: Option<String>,
    /// Instead, with --images: captions by image name, a JSON object, or JSON lines or Parquet with columns key and
    /// caption
    #[arg(long, value_name = "F", requires = "images", conflicts_with_all = ["prompt", "image"])]
    pub captions: Option<PathBuf>,
    /// Block, counted from 0; several, separated by commas, are averaged
    #[arg(long, value_name = "LIST")]
    pub layer: LayerList,
    #[command(flatten)]
    pub maps: MapArgs,
    #[command(flatten)]
    pub normalize: NormalizeArgs,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Side in pixels of the square that the image is resized to
    #[arg(long, value_name = "PIXELS", default_value = "1024", value_parser = parse_size)]
    pub size: usize,
    /// Share of noise in the latent, from 0 to 1
    #[arg(long, value_name = "SIGMA", default_value = "0.515", value_parser = parse_sigma)]
    pub sigma: f64,
    /// Seed of the noise, which is the same for every image
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Noise: safetensors with the key noise, [1, 16, h, w]
    #[arg(long, value_name = "F")]
    pub noise: Option<PathBuf>,
}

/// An image to probe.
struct Look {
    file: PathBuf,
    prompt: String,
    /// Its path below the folder, without extension; `None` for a single image.
    key: Option<String>,
}

/// Noises the image's latents to `sigma`, runs the blocks below the last layer, and writes the image queries'
/// attention.
pub fn run(args: &ProbeArgs) -> Result<()> {
    // Arguments are checked before gigabytes of weights are read.
    let looks = looks(args)?;
    if args.image.is_some() {
        looks.iter().try_for_each(|look| read_rgb8(&look.file).map(|_| ()))?;
    }
    args.maps.check(&args.model, &args.layer.0)?;
    let _held = OutputFolder::hold(&args.out)?;
    for key in looks.iter().filter_map(|look| look.key.as_ref()) {
        let file = args.out.join(format!("{key}.png"));
        sweep(folder_of(&file))?;
        sweep(&args.out.join(key))?;
    }
    let (pipeline, scheduler) = args.model.load(args.layer.depth())?;
    let device = &pipeline.device;
    let shape = pipeline.latent_shape(args.size)?;
    let noise = match &args.noise {
        Some(file) => read_latents(file, "noise", Some(1), shape, device)?,
        None => normal(args.seed, &[NOISE], (1, shape.0, shape.1, shape.2), device)?,
    };
    let timestep = scheduler.timestep(args.sigma as f32);
    let settings = args.maps.settings(&args.layer.0, args.normalize.normalize, device)?;
    settings.check(&pipeline.transformer)?;
    let heads = pipeline.transformer.config.num_attention_heads;
    let side = args.size as u32;
    for Look { file, prompt, key } in &looks {
        let picture = read_rgb8(file)?;
        let image = to_tensor(&bilinear(&picture, side, side), device)?;
        let latents = ((pipeline.vae.encode(&image)? * (1.0 - args.sigma))? + (&noise * args.sigma)?)?;
        let text = pipeline.text_encoders.encode(&[prompt])?;
        let timestep = Tensor::full(timestep, 1, &Device::Cpu)?;
        let embedded = pipeline.transformer.embedding.embed(&latents, &timestep, &text)?;
        let probes = pipeline.transformer.probes(&embedded, &settings.layers)?;
        let maps = tokens_first(&settings.of_probes(&probes, heads, embedded.grid)?, embedded.grid)?;
        match key {
            None => {
                write_attention(&args.out, &probes, heads, &maps)?;
                // As the model sees it.
                for square in to_rgb8(&image)? {
                    overlays(&args.out, &pipeline, prompt, &square, &maps)?;
                }
            }
            Some(key) => {
                let written = overlays(&args.out.join(key), &pipeline, prompt, &picture, &maps)?;
                let file = args.out.join(format!("{key}.png"));
                write_png(&file, &sheet(std::iter::once(&picture).chain(&written)))?;
                mention(&printable_path(&file));
            }
        }
    }
    Ok(())
}

/// The images to probe.
///
/// # Errors
/// The folder has no image, or an image has no caption.
fn looks(args: &ProbeArgs) -> Result<Vec<Look>> {
    let prompt = args.prompt.clone().unwrap_or_default();
    let folder = match (&args.image, &args.images) {
        (Some(image), _) => return Ok(vec![Look { file: image.clone(), prompt, key: None }]),
        (None, Some(folder)) => folder,
        (None, None) => return Err(Error::Usage("expected --image or --images".into())),
    };
    let found = Files::pictures(folder);
    let files = found.find()?;
    if files.is_empty() {
        return Err(Error::file(folder, format!("holds no image ({})", found.pattern())));
    }
    let captions = match &args.captions {
        Some(file) => Some((file, Captions::read(file, Columns::USUAL)?)),
        None => None,
    };
    let look = |(key, file): (String, PathBuf)| {
        let prompt = match &captions {
            None => prompt.clone(),
            Some((list, captions)) => caption_of(captions, list, &key, &file)?,
        };
        Ok(Look { file, prompt, key: Some(key) })
    };
    files.into_iter().map(look).collect()
}

/// Writes `attention.safetensors`: the mean over the blocks of the attention scores before the softmax, `logits`
/// `[heads, words, rows, columns]`, and of the softmax over all keys, averaged over heads, `probability`
/// `[words, rows, columns]`; and the maps of the settings, `maps` `[words, rows, columns]`.
fn write_attention(folder: &Path, probes: &[Probe], heads: usize, maps: &Tensor) -> Result<()> {
    let (_, rows, columns) = maps.dims3()?;
    let logits =
        mean_logits(probes, heads)?.into_tensor().reshape((heads, (), rows, columns))?.to_device(&Device::Cpu)?;
    let probability = tokens_first(mean_probability(probes, heads)?.tensor(), (rows, columns))?;
    let file = folder.join("attention.safetensors");
    let tensors = [("logits", logits), ("probability", probability), ("maps", maps.clone())];
    let tensors = tensors.map(|(name, tensor)| (name.to_string(), tensor)).into();
    weights::write(&file, &tensors, &Default::default())?;
    mention(&printable_path(&file));
    Ok(())
}

/// Writes a picture for each word of the prompt, and returns them.
fn overlays(
    folder: &Path,
    pipeline: &Pipeline,
    prompt: &str,
    picture: &RgbImage,
    maps: &Tensor,
) -> Result<Vec<RgbImage>> {
    let words: Vec<&str> = prompt.split_whitespace().collect();
    let spans = pipeline.text_encoders.token_spans(&words)?;
    let places: Vec<_> = words.into_iter().zip(spans).collect();
    for (word, _) in places.iter().filter(|(_, span)| span.is_none()) {
        tracing::warn!("\"{word}\" does not fit into the prompt's tokens; no picture of it");
    }
    let written = write_word_overlays(folder, picture, maps, &places)?;
    written.iter().for_each(|(file, _)| mention(&printable_path(file)));
    Ok(written.into_iter().map(|(_, picture)| picture).collect())
}

/// Copies one image's maps `[1, positions, tokens]` to the host as `[tokens, rows, columns]`.
fn tokens_first(maps: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let maps = maps.squeeze(0)?.t()?.contiguous()?.reshape(((), rows, columns))?;
    Ok(maps.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
}
