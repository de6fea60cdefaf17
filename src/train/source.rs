//! The networks of a run, and the cache that stands in for some of them.
use crate::config::RunConfig;
use crate::data::Cache;
use crate::encode::open_cache;
use crate::error::Result;
use crate::model::files::ModelFiles;
use crate::model::pipeline::{Pipeline, PipelineOptions};
use candle_core::Device;

/// The networks, and where latents and text come from if not from them.
pub struct Source {
    pub pipeline: Pipeline,
    pub cache: Option<Cache>,
}

impl Source {
    /// With a cache, the encoders are loaded only where the run `measures` its model, too.
    pub fn open(config: &RunConfig, device: &Device, files: &ModelFiles, measures: bool) -> Result<Self> {
        let cache = open_cache(config, files, device)?;
        let options = PipelineOptions::of(&config.model, device);
        let pipeline = match cache.is_some() && !measures {
            true => Pipeline::load_without_encoders(files, &options)?,
            false => Pipeline::load(files, &options)?,
        };
        Ok(Self { pipeline, cache })
    }

    /// What comes from the cache, for people; nothing where there is none.
    pub fn describe(&self, config: &RunConfig) -> String {
        let (Some(cache), Some(folder)) = (&self.cache, &config.data.cache) else { return String::new() };
        let (latents, text) = cache.entries();
        let loaded = if self.pipeline.has_encoders() { "are loaded for [eval] alone" } else { "are not loaded" };
        let folder = folder.display();
        format!("\n{latents} latents and {text} text embeddings from {folder}: autoencoder and text encoders {loaded}")
    }
}
