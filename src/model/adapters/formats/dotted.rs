//! The formats that name layers as diffusers does, written: diffusers' own, and PEFT's with its configuration beside it;
//! and the configurations that such files come with, read.
use super::prefixes::{DIFFUSERS_PREFIX, PEFT_PREFIX, Tensors};
use crate::model::adapters::adapter::Adapters;
use crate::model::adapters::stored::{Format, PeftConfig};
use crate::model::weights;
use crate::system::error::{Error, Result};
use crate::system::limits::MODEL_JSON;
use crate::system::whole_file;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::path::Path;

pub(super) const PEFT_CONFIG: &str = "adapter_config.json";
/// Where diffusers keeps the `LoraConfig` of the adapters in a file, each key behind its model's prefix.
const DIFFUSERS_CONFIG: &str = "lora_adapter_metadata";

/// Writes a folder for `PeftModel.from_pretrained`: parameters as trained, their settings in the configuration.
pub(super) fn write_peft(adapters: &Adapters, folder: &Path) -> Result<()> {
    write(adapters, Format::Peft, &folder.join(Format::Peft.file_name()))?;
    let Some(first) = adapters.values().next() else { return Ok(()) };
    let text = first.files().peft_config(adapters)?;
    whole_file::write_atomically(&folder.join(PEFT_CONFIG), |out| writeln!(out, "{text}"))
}

/// Writes `transformer.LAYER.lora_A.weight` and its like, or with PEFT's prefix.
pub(super) fn write(adapters: &Adapters, format: Format, file: &Path) -> Result<()> {
    let prefix = if format == Format::Peft { PEFT_PREFIX } else { DIFFUSERS_PREFIX };
    let mut tensors = Tensors::new();
    for (layer, adapter) in adapters {
        let stored = adapter.stored(format)?.into_iter();
        tensors.extend(stored.map(|(suffix, tensor)| (format!("{prefix}{layer}.{suffix}"), tensor)));
    }
    weights::write(file, &tensors, &BTreeMap::from([("format".into(), "pt".into())]))
}

/// What a file with this prefix says besides its tensors: PEFT's configuration beside it, or that in diffusers' metadata.
pub(super) fn config(file: &Path, prefix: &str, metadata: &BTreeMap<String, String>) -> Result<Option<PeftConfig>> {
    match prefix {
        PEFT_PREFIX => peft_config(&file.with_file_name(PEFT_CONFIG)).map(Some),
        _ => metadata.get(DIFFUSERS_CONFIG).map(|text| diffusers_config(file, text)).transpose(),
    }
}

fn peft_config(file: &Path) -> Result<PeftConfig> {
    let text = MODEL_JSON
        .read_text(file)
        .map_err(|e| Error::file(file, format!("{e}; PEFT keeps an adapter's rank and alpha in it")))?;
    Ok(PeftConfig { text, file: file.to_path_buf(), place: String::new() })
}

/// The transformer's part of diffusers' metadata: a JSON object with keys such as `transformer.lora_alpha`.
fn diffusers_config(file: &Path, text: &str) -> Result<PeftConfig> {
    let place = format!("metadata {DIFFUSERS_CONFIG}: ");
    // Raw, because the order of patterns counts.
    let all: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(text).map_err(|e| Error::file(file, format!("{place}{e}")))?;
    let own = all.iter().filter_map(|(key, value)| Some(format!("{:?}: {value}", key.strip_prefix(DIFFUSERS_PREFIX)?)));
    let text = format!("{{{}}}", own.collect::<Vec<_>>().join(", "));
    Ok(PeftConfig { text, file: file.to_path_buf(), place })
}
