//! What a run trained, as adapter files want it.
use crate::config::RunConfig;
use crate::model::adapters::formats::Origin;
use crate::model::adapters::{AdapterSettings, Adapters};
use crate::model::families::TransformerConfig;
use crate::system::error::{Error, Result};
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The adapters among a checkpoint's tensors (`lora.LAYER.down` and `.up`); `place` is what errors name.
pub fn adapters_of(
    tensors: &BTreeMap<String, Tensor>,
    settings: &dyn AdapterSettings,
    place: &Path,
) -> Result<Adapters> {
    let (prefix, parameters) = (format!("{}.", settings.kind()), settings.parameters());
    let layer = |name: &str| Some(name.strip_prefix(&prefix)?.rsplit_once('.')?.0.to_string());
    let layers: BTreeSet<String> = tensors.keys().filter_map(|name| layer(name)).collect();
    let adapter = |layer: String| {
        let find = |parameter: &&str| {
            let name = format!("{prefix}{layer}.{parameter}");
            tensors.get(&name).cloned().ok_or_else(|| Error::file(place, format!("{name} is missing")))
        };
        let adapter = settings.adapter(parameters.iter().map(find).collect::<Result<_>>()?)?;
        Ok((layer, adapter))
    };
    layers.into_iter().map(adapter).collect()
}

/// Where an adapter comes from; without the base model at hand its release is left open.
pub fn origin_of(config: &RunConfig, steps: u64, transformer: Option<&TransformerConfig>) -> Origin {
    Origin {
        release: transformer.and_then(|transformer| transformer.release),
        resolution: Some(config.data.resolution),
        steps: Some(steps),
        seed: Some(config.seed),
        title: None,
    }
}
