//! The formats that name layers as diffusers does: diffusers' own, PEFT's with its configuration beside it, and what the
//! paper's released code saves (read alone).
use crate::model::adapters::adapter::{AdapterFiles, Adapters};
use crate::model::adapters::stored::{Format, Parts, PeftConfig};
use crate::model::families::{self, FAMILIES};
use crate::model::weights;
use crate::system::error::{Error, Result};
use crate::system::limits::MODEL_JSON;
use crate::system::whole_file;
use candle_core::Tensor;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors by name.
pub(super) type Tensors = BTreeMap<String, Tensor>;

pub(super) const PEFT_CONFIG: &str = "adapter_config.json";
/// Where diffusers keeps the `LoraConfig` of the adapters in a file, each key behind its model's prefix.
const DIFFUSERS_CONFIG: &str = "lora_adapter_metadata";
const DIFFUSERS_PREFIX: &str = "transformer.";
const PEFT_PREFIX: &str = "base_model.model.";
/// Of the released code's whole model: its backbone's transformer. Alpha is the rank there.
const RELEASED_PREFIX: &str = "backbone.transformer.";
/// The score head that lies beside the adapter in its files; it serves maps, not the model.
const RELEASED_SCORE_HEAD: &str = "attn_mlp.";

/// Writes `transformer.LAYER.lora_A.weight` and its like.
pub(super) fn write_diffusers(adapters: &Adapters, file: &Path) -> Result<()> {
    write(adapters, Format::Diffusers, DIFFUSERS_PREFIX, file)
}

/// Writes a folder for `PeftModel.from_pretrained`: parameters as trained, their settings in the configuration.
pub(super) fn write_peft(adapters: &Adapters, folder: &Path) -> Result<()> {
    write(adapters, Format::Peft, PEFT_PREFIX, &folder.join(Format::Peft.file_name()))?;
    let Some(first) = adapters.values().next() else { return Ok(()) };
    let text = first.files().peft_config(adapters)?;
    whole_file::write_atomically(&folder.join(PEFT_CONFIG), |out| writeln!(out, "{text}"))
}

fn write(adapters: &Adapters, format: Format, prefix: &str, file: &Path) -> Result<()> {
    let mut tensors = Tensors::new();
    for (layer, adapter) in adapters {
        let stored = adapter.stored(format)?.into_iter();
        tensors.extend(stored.map(|(suffix, tensor)| (format!("{prefix}{layer}.{suffix}"), tensor)));
    }
    weights::write(file, &tensors, &BTreeMap::from([("format".into(), "pt".into())]))
}

/// A kind of adapter, and one of the ways that its tensors' names end.
type Suffixes = (&'static dyn AdapterFiles, &'static [&'static str]);

/// Which of the tensors of a layer `key` is, and the layer's name behind its prefix.
fn place(key: &str, suffixes: &[&str]) -> Option<(usize, String)> {
    let part =
        |(index, suffix): (usize, &&str)| Some((index, key.strip_suffix(suffix)?.strip_suffix('.')?.to_string()));
    suffixes.iter().enumerate().find_map(part)
}

/// What all `keys` end in, or, where there is no such kind, what the first does.
fn suffixes_of(keys: &[&String], kinds: &[&'static dyn AdapterFiles]) -> Option<Suffixes> {
    let all = || {
        let of_kind =
            |kind: &'static dyn AdapterFiles| kind.suffixes(Format::Diffusers).iter().map(move |s| (kind, *s));
        kinds.iter().copied().flat_map(of_kind)
    };
    let fits = |keys: &[&String]| all().find(|(_, suffixes)| keys.iter().all(|key| place(key, suffixes).is_some()));
    fits(keys).or_else(|| fits(keys.get(..1)?))
}

/// Reads a file of diffusers', PEFT's or the released code's names; what is not among the tensors comes from PEFT's
/// configuration beside it, or from that in diffusers' metadata.
pub(super) fn read(
    file: &Path,
    tensors: Tensors,
    metadata: &BTreeMap<String, String>,
    kinds: &[&'static dyn AdapterFiles],
) -> Result<Adapters> {
    let stems: Vec<&str> = FAMILIES.iter().flat_map(|family| family.kohya().blocks).map(|blocks| blocks.stem).collect();
    let expected =
        format!("({DIFFUSERS_PREFIX}… or {PEFT_PREFIX}… with lora_A and lora_B, or {}…)", stems.join("… or "));
    let mut layers: BTreeMap<String, Parts> = BTreeMap::new();
    let tensors: Tensors = tensors.into_iter().filter(|(key, _)| !key.starts_with(RELEASED_SCORE_HEAD)).collect();
    let keys: Vec<&String> = tensors.keys().collect();
    let Some(first) = keys.first() else {
        return Err(Error::file(file, "holds a score head, but no adapter"));
    };
    // The first key decides on the prefix: diffusers looks at one to tell which names a file has.
    let prefix_of =
        |key: &str| [DIFFUSERS_PREFIX, PEFT_PREFIX, RELEASED_PREFIX].into_iter().find(|p| key.starts_with(p));
    let (Some(prefix), Some((kind, suffixes))) = (prefix_of(first), suffixes_of(&keys, kinds)) else {
        return Err(unknown_key(file, first, &expected));
    };
    let first = first.to_string();
    for (key, tensor) in tensors {
        match (key.strip_prefix(prefix), place(&key, suffixes)) {
            (Some(_), Some((index, layer))) => {
                layers.entry(layer[prefix.len()..].to_string()).or_default().set(index, tensor);
            }
            _ if prefix_of(&key).is_some() && suffixes_of(&[&key], kinds).is_some() => {
                return Err(Error::file(file, format!("mixes two styles of names: {first} and {key}")));
            }
            _ => return Err(unknown_key(file, &key, &expected)),
        }
    }
    let config = match prefix {
        PEFT_PREFIX => Some(peft_config(&file.with_file_name(PEFT_CONFIG))?),
        _ => metadata.get(DIFFUSERS_CONFIG).map(|text| diffusers_config(file, text)).transpose()?,
    };
    kind.read(file, layers, config.as_ref())
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

/// The error for a key that no format has a place for.
pub(super) fn unknown_key(file: &Path, key: &str, expected: &str) -> Error {
    let why = if key.starts_with("text_encoder") || key.starts_with("lora_te") {
        "adapts a text encoder, only adapters of the transformer are supported".to_string()
    } else if key.starts_with("backbone.") {
        "is no part of an adapter: the file holds the whole model of the released code; convert it as the README says \
         under \"The published adapters\", which keeps the adapter and the score head"
            .to_string()
    } else {
        format!("is not a key of an {} adapter {expected}", families::names())
    };
    Error::file(file, format!("key {key} {why}"))
}
