//! From images and prompts to a map of every class: the attention of any blocks, in one pass.
use super::prompts::{Embeddings, Prompt};
use super::{NoiseLevel, SegmentationOptions};
use crate::data::codec::resize::bilinear;
use crate::eval::maps::MapSettings;
use crate::model::families::Embedded;
use crate::model::pipeline::Pipeline;
use crate::model::text::TextEmbedding;
use crate::sample::image::to_tensor;
use crate::sample::noise::normal;
use crate::sample::scheduler::Scheduler;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use std::ops::Deref;

/// First element of the noise stream of an evaluated image; the second is its index.
const NOISE: u64 = 0x7365_676d_656e_7400;
/// Embeddings that are kept: 160 MB where one is of 154 tokens of 4096 features.
const EMBEDDINGS: usize = 64;

/// How strongly each position of an image looks at each of some classes.
#[derive(Clone, Debug)]
pub struct ClassMaps {
    /// Rows and columns of image tokens.
    pub grid: (usize, usize),
    /// Indices of the classes.
    pub classes: Vec<u16>,
    /// The mean over the tokens of the class's name: `[classes, rows, columns]`.
    pub values: Vec<f32>,
}

impl ClassMaps {
    /// No map yet.
    pub fn empty(grid: (usize, usize)) -> Self {
        Self { grid, classes: vec![], values: vec![] }
    }

    /// Adds the classes of a prompt, whose tokens' maps are `[positions, tokens]`, as `settings` says.
    pub fn add(&mut self, prompt: &Prompt, of_tokens: &[f32], settings: &MapSettings) {
        let count = of_tokens.len() / (self.grid.0 * self.grid.1);
        for (class, place) in &prompt.places {
            self.classes.push(*class);
            let first = self.values.len();
            let tokens = of_tokens.chunks_exact(count).map(|row| &row[place.clone()]);
            self.values.extend(tokens.map(|tokens| tokens.iter().sum::<f32>() / place.len() as f32));
            settings.scale_after(&mut self.values[first..]);
        }
    }
}

/// A model and the noise under which it looks at images.
pub struct Segmenter<'a> {
    pipeline: &'a Pipeline,
    embeddings: Embeddings<'a>,
    sigma: f64,
    timestep: f32,
    /// (channels, height, width) of the latents.
    shape: (usize, usize, usize),
    /// One noise for every image, `[1, ..shape]`.
    noise: Option<&'a Tensor>,
    seed: u64,
    size: u32,
    batch: usize,
    maps: &'a MapSettings,
}

impl<'a> Segmenter<'a> {
    /// # Errors
    /// `Error::Usage` if the options do not suit the model.
    pub fn new(pipeline: &'a Pipeline, scheduler: &Scheduler, options: &'a SegmentationOptions) -> Result<Self> {
        let shape = pipeline.latent_shape(options.size)?;
        let (sigma, timestep) = options.noise_level.of(scheduler)?;
        let expected = [1, shape.0, shape.1, shape.2];
        if let Some(noise) = options.noise.as_ref().filter(|noise| noise.dims() != expected) {
            return Err(Error::Usage(format!("the noise has shape {:?}, expected {expected:?}", noise.dims())));
        }
        Ok(Self {
            pipeline,
            embeddings: Embeddings::new(&pipeline.text_encoders, EMBEDDINGS),
            sigma: f64::from(sigma),
            timestep,
            shape,
            noise: options.noise.as_ref(),
            seed: options.seed,
            size: u32::try_from(options.size).map_err(|_| Error::Usage(format!("size {}", options.size)))?,
            batch: options.batch.max(1),
            maps: &options.maps,
        })
    }

    /// The maps of each image, whose prompts stand at the same place in `prompts`. An image comes with its index in the
    /// data set, which its noise depends on.
    ///
    /// Only the blocks up to the last layer are run, and of that only its queries and keys.
    pub fn class_maps(
        &mut self,
        images: &[(usize, &RgbImage)],
        prompts: &[impl Deref<Target = [Prompt]>],
    ) -> Result<Vec<ClassMaps>> {
        let (transformer, settings) = (&self.pipeline.transformer, self.maps);
        let mut maps = vec![ClassMaps::empty(self.grid()); images.len()];
        self.each_batch(images, prompts, |pairs, embedded| {
            for ((image, prompt), of_tokens) in pairs.iter().zip(on_host(&settings.of_tokens(transformer, embedded)?)?)
            {
                maps[*image].add(prompt, &of_tokens, settings);
            }
            Ok(())
        })?;
        Ok(maps)
    }

    /// A learnt prompt, `[1, …]`, in place of the empty one.
    pub fn tell(&mut self, prompt: TextEmbedding) {
        self.embeddings.set("", prompt);
    }

    /// The maps of the tokens of an empty prompt, `[positions, tokens]` for each image.
    pub fn token_maps(&mut self, images: &[(usize, &RgbImage)]) -> Result<Vec<Vec<f32>>> {
        let (transformer, settings) = (&self.pipeline.transformer, self.maps);
        let nothing = vec![Prompt { text: String::new(), places: vec![] }];
        let mut maps = vec![];
        self.each_batch(images, &vec![nothing.as_slice(); images.len()], |_, embedded| {
            maps.extend(on_host(&settings.of_tokens(transformer, embedded)?)?);
            Ok(())
        })?;
        Ok(maps)
    }

    /// Rows and columns of image tokens.
    pub fn grid(&self) -> (usize, usize) {
        self.pipeline.transformer.config.grid(self.shape.1, self.shape.2)
    }

    /// Embeds every image with each of its prompts, a batch at a time. `visit` gets the batch's pairs of an image's place
    /// in `images` and a prompt.
    pub fn each_batch(
        &mut self,
        images: &[(usize, &RgbImage)],
        prompts: &[impl Deref<Target = [Prompt]>],
        mut visit: impl FnMut(&[(usize, &Prompt)], &Embedded) -> Result<()>,
    ) -> Result<()> {
        let transformer = &self.pipeline.transformer;
        let latents = images.iter().map(|&(index, image)| self.noised(index, image)).collect::<Result<Vec<_>>>()?;
        let pairs = (0..).zip(prompts).flat_map(|(image, prompts)| prompts.iter().map(move |prompt| (image, prompt)));
        let pairs: Vec<(usize, &Prompt)> = pairs.collect();
        for pairs in pairs.chunks(self.batch) {
            let latents = Tensor::cat(&pairs.iter().map(|(image, _)| &latents[*image]).collect::<Vec<_>>(), 0)?;
            let timestep = Tensor::full(self.timestep, pairs.len(), &Device::Cpu)?;
            let texts: Vec<&str> = pairs.iter().map(|(_, prompt)| prompt.text.as_str()).collect();
            let text = self.embeddings.of(&texts)?;
            let embedded = transformer.embedding.embed(&latents, &timestep, &text)?;
            visit(pairs, &embedded)?;
        }
        Ok(())
    }

    /// The image's latents at the noise level, `[1, channels, height, width]`. Images go through the autoencoder one by
    /// one: its activations are the largest there are.
    fn noised(&self, index: usize, image: &RgbImage) -> Result<Tensor> {
        let device = &self.pipeline.device;
        let square = to_tensor(&bilinear(image, self.size, self.size), device)?;
        let (channels, height, width) = self.shape;
        let noise = match self.noise {
            Some(noise) => noise.to_device(device)?.to_dtype(DType::F32)?,
            None => normal(self.seed, &[NOISE, index as u64], (1, channels, height, width), device)?,
        };
        Ok(((self.pipeline.vae.encode(&square)? * (1.0 - self.sigma))? + (noise * self.sigma)?)?)
    }
}

/// Maps `[batch, positions, tokens]`, one list of values an image.
pub fn on_host(maps: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(maps.to_device(&Device::Cpu)?.flatten_from(1)?.to_vec2::<f32>()?)
}

impl NoiseLevel {
    /// σ, and what the model is told of it.
    fn of(self, scheduler: &Scheduler) -> Result<(f32, f32)> {
        match self {
            Self::Sigma(sigma) => Ok((sigma as f32, scheduler.timestep(sigma as f32))),
            Self::Step { steps, timestep } => {
                let schedule = scheduler.set_timesteps(steps);
                let index =
                    if timestep < 0 { steps.checked_add_signed(timestep) } else { usize::try_from(timestep).ok() };
                let found =
                    index.and_then(|index| Some((*schedule.sigmas.get(index)?, *schedule.timesteps.get(index)?)));
                found.ok_or_else(|| Error::Usage(format!("time step {timestep} of a schedule of {steps} steps")))
            }
        }
    }
}
