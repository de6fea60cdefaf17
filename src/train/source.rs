//! The networks of a run, and the cache in place of some of them.
use crate::config::RunConfig;
use crate::data::Cache;
use crate::encode::open_cache;
use crate::model::pipeline::{Pipeline, PipelineOptions};
use crate::model::text::TextEmbedding;
use crate::model::weights::files::ModelFiles;
use crate::system::error::Result;
use candle_core::Device;

/// The networks, and the cache that latents and text embeddings come from if not from them.
pub struct Source {
    pub pipeline: Pipeline,
    pub cache: Option<Cache>,
    /// The embedding of the empty prompt, where a prompt is learnt: its tokens start from it, its pooled state stays.
    pub empty_prompt: Option<TextEmbedding>,
}

impl Source {
    /// With a cache, the encoders are loaded only where the run `measures` its model, too.
    pub fn open(config: &RunConfig, device: &Device, files: &ModelFiles, measures: bool) -> Result<Self> {
        let cache = open_cache(config, files, device)?;
        let options = PipelineOptions::of(&config.model, device);
        let mut pipeline = match cache.is_some() && !measures {
            true => Pipeline::load_without_encoders(files, &options)?,
            false => Pipeline::load(files, &options)?,
        };
        let empty_prompt = match (config.model.learnable_prompt, &cache) {
            (false, _) => None,
            (true, None) => Some(pipeline.text_encoders.encode(&[""])?),
            (true, Some(cache)) => match cache.text("")? {
                Some(values) => Some(pipeline.text_encoders.shape().expand(&values, device)?),
                None => return Err(cache.lacks("its text embedding", "the empty prompt")),
            },
        };
        if empty_prompt.is_some() && !measures {
            pipeline.text_encoders.unload();
        }
        Ok(Self { pipeline, cache, empty_prompt })
    }

    /// A line for people on what the cache provides; empty without one.
    pub fn describe(&self, config: &RunConfig) -> String {
        let (Some(cache), Some(folder)) = (&self.cache, &config.data.cache) else { return String::new() };
        let (latents, text) = cache.entries();
        let loaded =
            if self.pipeline.text_encoders.can_encode() { "are loaded for [eval] alone" } else { "are not loaded" };
        let folder = folder.display();
        format!("\n{latents} latents and {text} text embeddings from {folder}: autoencoder and text encoders {loaded}")
    }
}
