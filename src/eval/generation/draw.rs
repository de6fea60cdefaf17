//! Generates images from captions and compares their features with those of real images, without keeping the images.
use super::statistics::{self, Prepared, Statistics};
use super::{GenerationScores, ReferenceStatistics};
use crate::config::EvalConfig;
use crate::eval::turns::Turns;
use crate::eval::{EvaluatedModel, usual_batch};
use crate::model::families::Blur;
use crate::model::text::TextEmbedding;
use crate::sample::generate::{PerturbedGuidance, PromptEmbeddings, SamplingOptions, initial_latents};
use crate::sample::image::to_rgb8;
use crate::system::error::{Error, Result};
use image::RgbImage;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Greatest size in bytes of the cache of text embeddings.
const KEPT_TEXT: usize = 256 << 20;

/// What to generate, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationOptions {
    /// Number of images.
    pub images: usize,
    /// Side of the square images in pixels.
    pub size: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; 1 or less turns guidance off. Without it the model's usual one.
    pub guidance: Option<f64>,
    /// Perturbed guidance, where it is asked for.
    pub perturbed: Option<PerturbedGuidance>,
    /// Images generated together.
    pub batch: usize,
    /// Image `i` starts from noise that depends on this seed and `i` alone.
    pub seed: u64,
}

impl GenerationOptions {
    /// The options of a run's `[eval]`.
    pub fn of(config: &EvalConfig) -> Self {
        let blur = Blur { layer: config.perturb_layer, sigma: config.perturb_sigma };
        Self {
            perturbed: PerturbedGuidance::new(config.perturb_scale, blur),
            images: config.generation_images,
            size: config.size,
            steps: config.steps,
            guidance: config.guidance,
            batch: config.batch.unwrap_or(usual_batch(config.size)),
            seed: config.seed,
        }
    }
}

/// Generates `options.images` images, cycling through the captions, and scores them, at rank 0. `visit` receives every image
/// that this process draws with its number, in order; its error ends the evaluation.
///
/// The batch size changes images by rounding errors only.
///
/// # Errors
/// The size does not suit the model (`Error::Usage`), there is no caption, an image is not finite, or a process has failed.
pub fn evaluate(
    model: EvaluatedModel,
    captions: &[String],
    options: &GenerationOptions,
    reference: &ReferenceStatistics,
    visit: &mut dyn FnMut(usize, &RgbImage) -> Result<()>,
) -> Result<Option<GenerationScores>> {
    if captions.is_empty() {
        return Err(Error::Usage("there is no caption to draw from".into()));
    }
    let mut painter = Painter::new(model, options)?;
    let networks = &reference.networks;
    let mut statistics = Statistics::of_none(networks);
    let batch = options.batch.max(1);
    let draw = |number: usize| {
        let first = number * batch;
        let indices = first..options.images.min(first + batch);
        let captions: Vec<&str> = indices.map(|index| captions[index % captions.len()].as_str()).collect();
        let images = painter.draw(first, &captions, None)?;
        (first..).zip(&images).try_for_each(|(index, image)| visit(index, image))?;
        statistics::features(networks, Prepared::new(networks, images.par_iter().map(Ok))?)
    };
    model.turns.gather_each(options.images.div_ceil(batch), draw, |features| {
        statistics::add(features, networks, &mut statistics);
        Ok(())
    })?;
    model.turns.is_main().then(|| reference.score(&statistics)).transpose()
}

/// Generates batches of images.
pub struct Painter<'a> {
    model: EvaluatedModel<'a>,
    sampling: SamplingOptions,
    /// What the model is told, if it embeds its guidance scale.
    guidance_scale: Option<f64>,
    seed: u64,
    batch: usize,
    /// Shape of one image's latents.
    shape: (usize, usize, usize),
    /// Text embeddings of captions; the first ones, up to [`KEPT_TEXT`].
    kept: BTreeMap<String, TextEmbedding>,
    kept_bytes: usize,
}

impl<'a> Painter<'a> {
    /// # Errors
    /// `Error::Usage` if the size does not suit the model.
    pub fn new(model: EvaluatedModel<'a>, options: &GenerationOptions) -> Result<Self> {
        let pipeline = model.pipeline;
        let shape = pipeline.latent_shape(options.size)?;
        let config = &pipeline.transformer.config;
        let scale = options.guidance.unwrap_or(config.usual_guidance_scale);
        let (passes, guidance_scale) = config.guidance.scales(scale);
        Ok(Self {
            model,
            guidance_scale,
            sampling: SamplingOptions {
                steps: options.steps,
                guidance: passes,
                perturbed: options.perturbed,
                progress: false,
            },
            seed: options.seed,
            batch: options.batch.max(1),
            shape,
            kept: BTreeMap::new(),
            kept_bytes: 0,
        })
    }

    /// Generates an image of each caption, a batch at a time; `progress` receives the number of images in each batch of this
    /// process. Of several processes rank 0 has the images, and the others none.
    ///
    /// # Errors
    /// Those of [`draw`](Self::draw); a process has failed.
    pub fn draw_all(
        &mut self,
        captions: &[String],
        blur: Option<Blur>,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<RgbImage>> {
        let (batch, turns, mut own) = (self.batch, self.model.turns, vec![]);
        turns.each(captions.len().div_ceil(batch), |number| {
            let first = number * batch;
            let captions = &captions[first..captions.len().min(first + batch)];
            let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
            own.extend((first..).zip(self.draw(first, &texts, blur)?));
            progress(captions.len());
            Ok(())
        })?;
        pictures_at_main(own, turns)
    }

    /// Generates images `first`, `first + 1`, …, one for each caption; with `blur`, the attention is blurred in every
    /// step.
    ///
    /// # Errors
    /// An image is not finite.
    pub fn draw(&mut self, first: usize, captions: &[&str], blur: Option<Blur>) -> Result<Vec<RgbImage>> {
        let EvaluatedModel { pipeline, scheduler, .. } = self.model;
        let noise = initial_latents(self.seed, first, captions.len(), self.shape, &pipeline.device)?;
        let positive = self.encode(captions)?;
        let negative = self.encode(&vec![""; captions.len()])?;
        let conditions = PromptEmbeddings { positive: &positive, negative: &negative };
        let image_tokens = pipeline.transformer.config.image_tokens(self.shape);
        let velocity = |latents: &_, timestep: &_, text: &_, guiding: Option<Blur>| {
            pipeline.transformer.forward(latents, timestep, text, blur.or(guiding), self.guidance_scale)
        };
        let latents = self.sampling.run(scheduler, &noise, image_tokens, &conditions, velocity)?;
        if !latents.sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            let last = first + captions.len() - 1;
            let problem = format!("the model draws images {first} to {last} with values that are not finite");
            return Err(Error::Failed(problem));
        }
        to_rgb8(&pipeline.vae.decode(&latents)?)
    }

    /// The captions' embeddings as one batch, encoded one by one.
    fn encode(&mut self, captions: &[&str]) -> Result<TextEmbedding> {
        let embeddings = captions.iter().map(|caption| self.embedding(caption)).collect::<Result<Vec<_>>>()?;
        TextEmbedding::cat(&embeddings.iter().collect::<Vec<_>>())
    }

    fn embedding(&mut self, caption: &str) -> Result<TextEmbedding> {
        if let Some(kept) = self.kept.get(caption) {
            return Ok(kept.clone());
        }
        let embedding = self.model.pipeline.text_encoders.encode(&[caption])?;
        let tensors = [&embedding.context, &embedding.pooled];
        let bytes: usize = tensors.iter().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum();
        if self.kept_bytes + bytes <= KEPT_TEXT {
            self.kept_bytes += bytes;
            self.kept.insert(caption.to_owned(), embedding.clone());
        }
        Ok(embedding)
    }
}

/// At rank 0 the pictures of all processes, which are of one size, in the order of their numbers; at the others none.
///
/// # Errors
/// A process has failed.
pub fn pictures_at_main(own: Vec<(usize, RgbImage)>, turns: &Turns) -> Result<Vec<RgbImage>> {
    let side = |bytes: &[u8]| ((bytes.len() / 3) as f64).sqrt().round() as u32;
    let pieces = own.into_iter().map(|(number, picture)| (number, picture.into_raw())).collect();
    let pictures = turns.pieces_at_main(pieces)?.into_iter();
    let picture = |bytes: Vec<u8>| RgbImage::from_raw(side(&bytes), side(&bytes), bytes);
    pictures.map(|bytes| picture(bytes).ok_or_else(|| Error::Failed("a picture is not square".into()))).collect()
}
