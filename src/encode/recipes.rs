//! Recipes of a cache's entries: everything that latents and text embeddings depend on besides image and prompt.
use crate::config::{Choice, Crop, DataConfig, ModelConfig, TextEncoderKind};
use crate::data::cache::Recipe;
use crate::model::text::{TextEncoders, TextShape};
use crate::model::vae::VaeConfig;
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::fingerprint::fingerprint;
use crate::system::error::{Error, Result};
use candle_core::Device;

/// Version of the way from image file to pixels (`data::codec`: `photograph`, `jpeg`, `resize`, `crop`); raised
/// whenever the pixels change.
const PIXELS: &str = "1";

/// The recipe of latents: autoencoder, resolution, crop.
///
/// # Errors
/// `Error::Usage` if the crop is random.
pub fn latents(files: &ModelFiles, data: &DataConfig) -> Result<Recipe> {
    if data.crop == Crop::Random {
        let why = "a random crop is another picture in every epoch, which no cache can hold";
        return Err(Error::Usage(format!(
            "data.crop = \"random\": {why}; take \"center\" or \"stretch\", or train without a cache"
        )));
    }
    let vae = VaeConfig::open(files)?;
    let unit = vae.pixels_per_latent();
    if !data.resolution.is_multiple_of(unit) {
        let problem = format!("data.resolution: {} is not a multiple of the autoencoder's {unit}", data.resolution);
        return Err(Error::Usage(problem));
    }
    let side = data.resolution / unit;
    let facts = vec![
        ("autoencoder", fingerprint(&files.part_files(Part::Vae)?)?),
        ("resolution", data.resolution.to_string()),
        ("crop", data.crop.name().into()),
        ("pixels", PIXELS.into()),
    ];
    Ok(recipe("latents", facts, vec![("latents", vec![vae.channels(), side, side])]))
}

/// The recipe of text embeddings: encoders with their tokenizers, dtypes, and number of tokens.
pub fn text(files: &ModelFiles, model: &ModelConfig, device: &Device) -> Result<Recipe> {
    let shape = TextShape::open(files, &model.text_encoders, model.max_sequence_length)?;
    let encoder = |kind| match model.text_encoders.contains(&kind) {
        true => fingerprint(&files.part_files(Part::Text(kind))?),
        false => Ok("not used".to_string()),
    };
    let weights = model.dtype.dtype();
    let mut facts = vec![
        ("clip_l", encoder(TextEncoderKind::ClipL)?),
        ("clip_g", encoder(TextEncoderKind::ClipG)?),
        ("t5", encoder(TextEncoderKind::T5)?),
        ("weights", weights.as_str().into()),
        ("arithmetic", TextEncoders::arithmetic(weights, device).as_str().into()),
        ("tokens", format!("{} of width {}", shape.tokens, shape.width)),
    ];
    // Others are not said where the pipeline lacks them: caches from before they were known stay what they are.
    for folders in files.known_pipeline()?.encoders {
        if facts.iter().all(|(name, _)| *name != folders.kind.name()) {
            facts.push((folders.kind.name(), encoder(folders.kind)?));
        }
    }
    // Embeddings of quantised encoders are others. Without, the recipe is that of caches from before there was such.
    facts.extend(model.quantize.map(|format| ("quantized", format.name().into())));
    let (rows, columns) = shape.filled();
    Ok(recipe("text", facts, vec![("context", vec![rows, columns]), ("pooled", vec![shape.pooled])]))
}

fn recipe(kind: &'static str, facts: Vec<(&'static str, String)>, tensors: Vec<(&'static str, Vec<usize>)>) -> Recipe {
    Recipe { kind, facts: facts.into_iter().map(|(name, value)| (name.to_string(), value)).collect(), tensors }
}
