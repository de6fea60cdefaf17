//! What the frozen encoders make of a data set, computed ahead of training: the recipes that a model and a
//! configuration amount to, and the job that fills a cache.
mod fill;
mod recipes;

pub use fill::{Filled, fill};

use crate::config::RunConfig;
use crate::data::Cache;
use crate::model::weights::files::ModelFiles;
use crate::system::error::Result;
use candle_core::Device;

/// Opens the cache that the configuration names, if it names one, for this model.
///
/// # Errors
/// There is no cache, or it is damaged, or of another model or other settings.
pub fn open_cache(config: &RunConfig, files: &ModelFiles, device: &Device) -> Result<Option<Cache>> {
    let Some(folder) = &config.data.cache else { return Ok(None) };
    let latents = recipes::latents(files, &config.data)?;
    let text = recipes::text(files, &config.model, device)?;
    // The run writes its configuration there before the first sample is asked for.
    let refill = format!("seg4diff prepare cache --config {}", config.output.join("config.toml").display());
    Cache::open(folder, latents, text, refill).map(Some)
}
