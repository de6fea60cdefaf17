//! What a run's frozen weights take in memory, by the headers of their files: nothing else is read.
use crate::config::{Choice, RunConfig};
use crate::model::families;
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::Result;
use candle_core::Device;

/// Parts of the names of a text encoder's tables, which are no layers.
const TABLES: [&str; 3] = ["embed", "shared", "relative_attention_bias"];

/// A line for people: the transformer's weights, and without a cache the text encoders'.
///
/// # Errors
/// A file of the model cannot be read.
pub fn describe(config: &RunConfig) -> Result<String> {
    let files = ModelFiles::of(&config.model)?;
    let dtype = config.model.dtype.dtype();
    let weights = |part: Part| files.weights(part, dtype, &Device::Cpu);
    let lists = families::of(&files)?.config(&files)?.block_lists;
    let transformer = weights(Part::Transformer)?.bytes(|name| lists.iter().any(|(list, _)| name.starts_with(list)));
    let format = match config.model.quantize {
        Some(format) => format!("{}, the rest in {}", format.name(), dtype.as_str()),
        None => dtype.as_str().to_string(),
    };
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    let mut line = format!("frozen weights as {format}: transformer {}", gigabytes(transformer));
    if config.data.cache.is_none() {
        let is_layer = |name: &str| TABLES.iter().all(|table| !name.contains(table));
        let of = |kind| Ok(weights(Part::Text(kind))?.bytes(is_layer));
        let encoders = config.model.text_encoders.iter().map(|kind| of(*kind)).sum::<Result<u64>>()?;
        line += &format!(", text encoders {}", gigabytes(encoders));
    }
    Ok(line)
}
