//! What a model's configuration files allow of the settings, before any weights are read.
use super::required_files::pipeline_of;
use crate::system::error::{Error, Result};
use crate::system::limits::MODEL_JSON;
use crate::system::paths::may_be_file;
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
        let (config, pipeline) = (json(&file)?, pipeline_of(folder));
        let size = |key: &str| config.get(key).and_then(|size| size.as_u64()).map(|size| size as usize);
        let vae = json(&folder.join("vae/config.json")).ok();
        let stages = vae.as_ref().and_then(|vae| vae.get("block_out_channels")?.as_array()).map(Vec::len);
        let token_pixels = match (size("patch_size").filter(|patch| *patch > 0), stages) {
            // Each stage of the autoencoder but the last halves the image.
            (Some(patch), Some(stages @ 1..32)) => {
                Some(patch.saturating_mul(pipeline.packed_side).saturating_mul(1 << (stages - 1)))
            }
            _ => None,
        };
        let counts = pipeline.block_counts.iter().map(|key| size(key));
        let blocks = counts.sum::<Option<usize>>().filter(|blocks| *blocks > 0);
        Ok(Some(Self { blocks, heads: size("num_attention_heads"), token_pixels, file }))
    }
}

fn json(file: &Path) -> Result<serde_json::Value> {
    let bytes = MODEL_JSON.read(file).map_err(|e| Error::file(file, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(file, format!("not JSON: {e}")))
}
