//! What a run trained, as adapter files want it.
use crate::config::RunConfig;
use crate::model::adapters::formats::{Family, Origin};
use crate::model::adapters::lora::{Adapter, Lora};
use crate::model::families::sd3::MmDitConfig;
use crate::system::error::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// The adapters among a checkpoint's tensors (`lora.MODULE.down` and `.up`); `place` is what errors name.
pub fn adapter_of(tensors: &BTreeMap<String, Tensor>, alpha: f64, place: &Path) -> Result<Adapter> {
    let mut adapter = Adapter::new();
    for (name, down) in tensors {
        let Some(module) = name.strip_prefix("lora.").and_then(|name| name.strip_suffix(".down")) else { continue };
        let Some(up) = tensors.get(&format!("lora.{module}.up")) else {
            return Err(Error::file(place, format!("{name} has no {module}.up beside it")));
        };
        adapter.insert(module.to_string(), Lora { down: down.clone(), up: up.clone(), alpha });
    }
    Ok(adapter)
}

/// Where an adapter comes from; without the base model at hand its family is left open.
pub fn origin_of(config: &RunConfig, steps: u64, transformer: Option<&MmDitConfig>) -> Origin {
    let family = |t: &MmDitConfig| Family::of_transformer(t.qk_norm.is_some(), !t.dual_attention_layers.is_empty());
    Origin {
        family: transformer.map(family),
        resolution: Some(config.data.resolution),
        steps: Some(steps),
        seed: Some(config.seed),
        title: None,
    }
}
