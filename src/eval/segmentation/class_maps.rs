//! Class maps from images and prompts: the attention of any blocks, in one forward pass.
use super::options::SegmentationOptions;
use super::prompts::{Embeddings, Prompt};
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

/// First key of an image's noise stream; the second key is its index.
const NOISE: u64 = u64::from_be_bytes(*b"segment\0");

/// The attention of each image token to the names of some classes.
#[derive(Clone, Debug)]
pub struct ClassMaps {
    /// Rows and columns of image tokens.
    pub grid: (usize, usize),
    /// Indices of the classes.
    pub classes: Vec<u16>,
    /// Mean over the tokens of each class's name: `[classes, rows, columns]`.
    pub values: Vec<f32>,
}

impl ClassMaps {
    /// Without classes.
    pub fn empty(grid: (usize, usize)) -> Self {
        Self { grid, classes: vec![], values: vec![] }
    }

    /// Adds the classes of a prompt from its tokens' maps `[positions, tokens]`.
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

/// Runs the model on noised images.
pub struct Segmenter<'a> {
    pipeline: &'a Pipeline,
    embeddings: Embeddings<'a>,
    sigma: f64,
    timestep: f32,
    /// Shape of the latents: (channels, height, width).
    shape: (usize, usize, usize),
    size: u32,
    options: &'a SegmentationOptions,
}

impl<'a> Segmenter<'a> {
    /// # Errors
    /// `Error::Usage` if the options do not suit the model.
    pub fn new(pipeline: &'a Pipeline, scheduler: &Scheduler, options: &'a SegmentationOptions) -> Result<Self> {
        let shape = pipeline.latent_shape(options.size)?;
        let (sigma, timestep) = options.noise_level.of(scheduler, pipeline.transformer.config.image_tokens(shape))?;
        let expected = [1, shape.0, shape.1, shape.2];
        if let Some(noise) = options.noise.as_ref().filter(|noise| noise.dims() != expected) {
            return Err(Error::Usage(format!("the noise has shape {:?}, expected {expected:?}", noise.dims())));
        }
        Ok(Self {
            pipeline,
            embeddings: Embeddings::new(&pipeline.text_encoders),
            sigma: f64::from(sigma),
            timestep,
            shape,
            size: u32::try_from(options.size).map_err(|_| Error::Usage(format!("size {}", options.size)))?,
            options,
        })
    }

    /// The maps of each image with the prompts at its position in `prompts`. Images come with their index in the data
    /// set, which determines their noise.
    ///
    /// Runs only the blocks up to the last of the layers, and only the queries and keys of that one.
    pub fn class_maps(
        &mut self,
        images: &[(usize, &RgbImage)],
        prompts: &[impl Deref<Target = [Prompt]>],
    ) -> Result<Vec<ClassMaps>> {
        let (transformer, settings) = (&self.pipeline.transformer, &self.options.maps);
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

    /// Replaces the empty prompt's embedding by a learnt one, `[1, …]`.
    pub fn tell(&mut self, prompt: TextEmbedding) {
        self.embeddings.known.push_back((String::new(), prompt));
    }

    /// The maps of the word tokens of the empty prompt, `[positions, tokens]` for each image.
    pub fn token_maps(&mut self, images: &[(usize, &RgbImage)]) -> Result<Vec<Vec<f32>>> {
        let (transformer, settings) = (&self.pipeline.transformer, &self.options.maps);
        let nothing = [Prompt::default()];
        let mut maps = vec![];
        self.each_batch(images, &vec![&nothing[..]; images.len()], |_, embedded| {
            maps.extend(on_host(&settings.of_tokens(transformer, embedded)?)?);
            Ok(())
        })?;
        Ok(maps)
    }

    /// Rows and columns of image tokens.
    pub fn grid(&self) -> (usize, usize) {
        self.pipeline.transformer.config.grid(self.shape.1, self.shape.2)
    }

    /// Embeds every pair of image and prompt, a batch at a time. `visit` receives the pairs (position in `images`,
    /// prompt) of a batch.
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
        for pairs in pairs.chunks(self.options.batch.max(1)) {
            let latents = Tensor::cat(&pairs.iter().map(|(image, _)| &latents[*image]).collect::<Vec<_>>(), 0)?;
            let timestep = Tensor::full(self.timestep, pairs.len(), &Device::Cpu)?;
            let texts: Vec<&str> = pairs.iter().map(|(_, prompt)| prompt.text.as_str()).collect();
            let text = self.embeddings.of(&texts)?;
            let embedded = transformer.embedding.embed(&latents, &timestep, &text)?;
            visit(pairs, &embedded)?;
        }
        Ok(())
    }

    /// The image's noised latents, `[1, channels, height, width]`. The autoencoder runs on one image at a time, since
    /// its activations are the largest.
    fn noised(&self, index: usize, image: &RgbImage) -> Result<Tensor> {
        let device = &self.pipeline.device;
        let square = to_tensor(&bilinear(image, self.size, self.size), device)?;
        let (channels, height, width) = self.shape;
        let noise = match &self.options.noise {
            Some(noise) => noise.to_device(device)?.to_dtype(DType::F32)?,
            None => normal(self.options.seed, &[NOISE, index as u64], (1, channels, height, width), device)?,
        };
        Ok(((self.pipeline.vae.encode(&square)? * (1.0 - self.sigma))? + (noise * self.sigma)?)?)
    }
}

/// Copies maps `[batch, positions, tokens]` to the host, one `Vec` for each image.
pub fn on_host(maps: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(maps.to_device(&Device::Cpu)?.flatten_from(1)?.to_vec2::<f32>()?)
}
