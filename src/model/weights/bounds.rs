//! What a model's configuration files allow of the settings, before any weights are read.
use super::files::{ModelFiles, Part};
use super::required_files::{json, pipeline_of};
use crate::model::families::pipelines::PipelineNames;
use crate::system::error::Result;
use crate::system::paths::may_be_file;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Sizes that a diffusers folder names; `None` where a file does not name them as it should, which is found when the
/// model is opened.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The transformer's `config.json`.
    pub file: PathBuf,
    /// Blocks of the transformer.
    pub blocks: Option<usize>,
    /// Heads of a block.
    pub heads: Option<usize>,
    /// Side in pixels of the square that becomes one token.
    pub token_pixels: Option<usize>,
}

impl Bounds {
    /// Reads them from the diffusers folder `folder`; `None` if it has no transformer.
    ///
    /// # Errors
    /// The transformer's configuration cannot be read, or is not JSON.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join("transformer/config.json");
        if !may_be_file(&file) {
            return Ok(None);
        }
        let vae = json(&folder.join("vae/config.json")).ok();
        Ok(Some(Self::of(&json(&file)?, vae.as_ref(), pipeline_of(folder), file)))
    }

    /// Those of a model in one file.
    ///
    /// # Errors
    /// Its transformer has no sizes.
    pub fn of_file(files: &ModelFiles) -> Result<Self> {
        let (config, vae) = (files.config(Part::Transformer)?, files.config(Part::Vae)?);
        Ok(Self::of(&config, Some(&vae), files.known_pipeline()?, files.config_path(Part::Transformer)))
    }

    /// What the configurations of transformer and autoencoder name; that of the transformer is from `file`.
    fn of(config: &Value, vae: Option<&Value>, pipeline: &PipelineNames, file: PathBuf) -> Self {
        let size = |key: &str| config.get(key).and_then(Value::as_u64).map(|size| size as usize);
        let stages = vae.and_then(|vae| vae.get("block_out_channels")?.as_array()).map(Vec::len);
        // FLUX's transformers take patches that were packed before, one a token.
        let patch = size("patch_size").or_else(|| (pipeline.packed_side > 1).then_some(1));
        let token_pixels = match (patch.filter(|patch| *patch > 0), stages) {
            // Each stage of the autoencoder but the last halves the image.
            (Some(patch), Some(stages @ 1..32)) => {
                Some(patch.saturating_mul(pipeline.packed_side).saturating_mul(1 << (stages - 1)))
            }
            _ => None,
        };
        let counts = pipeline.block_counts.iter().map(|key| size(key));
        let blocks = counts.sum::<Option<usize>>().filter(|blocks| *blocks > 0);
        Self { blocks, heads: size("num_attention_heads"), token_pixels, file }
    }
}
