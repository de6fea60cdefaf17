//! The cache of latents and text embeddings: the recipes of a model and a configuration, and the command that fills
//! it.
mod fill;
mod recipes;
mod together;

pub use fill::fill;

use crate::config::RunConfig;
use crate::data::Cache;
use crate::model::weights::files::ModelFiles;
use crate::system::error::Result;
use candle_core::Device;

/// Opens the cache of `data.cache` for this model, if the key is set.
///
/// # Errors
/// There is no cache, or it is damaged, or of another model or other settings.
pub fn open_cache(config: &RunConfig, files: &ModelFiles, device: &Device) -> Result<Option<Cache>> {
    let Some(folder) = &config.data.cache else { return Ok(None) };
    let latents = recipes::latents(files, &config.data)?;
    let text = recipes::text(files, &config.model, device)?;
    // A run writes its configuration there before it reads the first sample.
    let refill = format!("seg4diff prepare cache --config {}", config.output.join("config.toml").display());
    Cache::open(folder, latents, text, refill).map(Some)
}
