//! Adapter files of any tool: which layer and which tensor of its adapter a key names.
//!
//! A key is a layer's name behind a prefix, and the end that says which tensor it is. Layers are named as in diffusers or
//! as in the original checkpoint, with dots or underscores; the ends are those of PEFT, diffusers or kohya. All
//! combinations are read, as ComfyUI does (`comfy/lora.py`), but a file has one of them.
use super::kohya;
use super::prefixes::{LayerNaming, PREFIXES, Tensors, unknown_key};
use crate::model::adapters::adapter::{AdapterFiles, Adapters};
use crate::model::adapters::stored::{Format, LayerTensors, PeftConfig};
use crate::system::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The score head that lies beside the adapter in the files of the released code; it serves maps, not the model.
const SCORE_HEAD: &str = "attn_mlp.";

/// Prefixes of what belongs to the text encoders, which are not adapted: diffusers, kohya, ComfyUI; and the embeddings
/// that OneTrainer bundles with an adapter.
const TEXT_PREFIXES: [&str; 13] = [
    "text_encoder.",
    "text_encoder_2.",
    "text_encoder_3.",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "clip_l.",
    "clip_g.",
    "t5xxl.",
    "text_encoders.",
    "cond_stage_model.",
    "bundle_emb.",
];

/// Parts of keys by which other kinds of adapters are known.
const OTHER_KINDS: [(&str, &str); 6] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_w", "LoHa"),
    ("lokr_w", "LoKr"),
    ("oft_", "OFT"),
    ("lora_mid", "LoCon with Tucker decomposition"),
];

/// Ends of keys that stand beside those of a LoRA, and change a layer in another way.
const OTHER_ENDS: [(&str, &str); 7] = [
    (".diff", "a whole difference of weights"),
    (".diff_b", "a difference of biases"),
    (".set_weight", "weights in the place of the model's"),
    (".w_norm", "weights of norms"),
    (".b_norm", "biases of norms"),
    (".reshape_weight", "another shape of weights"),
    (".bias", "a bias of the adapter"),
];

/// A kind of adapter, and one of the ways that its tensors' names end.
type Suffixes = (&'static dyn AdapterFiles, &'static [&'static str]);

/// The prefix of a key, and how layers are named behind it.
fn prefix_of(key: &str) -> Option<(&'static str, LayerNaming)> {
    PREFIXES.into_iter().find(|(prefix, _)| key.starts_with(prefix))
}

/// Which of the tensors of a layer `key` is, and the layer's name with its prefix.
fn place<'a>(key: &'a str, suffixes: &[&str]) -> Option<(usize, &'a str)> {
    let part = |(index, suffix): (usize, &&str)| Some((index, key.strip_suffix(suffix)?.strip_suffix('.')?));
    suffixes.iter().enumerate().find_map(part)
}

/// What most of `keys` end in, if any do.
fn suffixes_of(keys: &[&String], kinds: &[&'static dyn AdapterFiles]) -> Option<Suffixes> {
    let all = || {
        let formats =
            |kind: &&'static dyn AdapterFiles| [Format::Diffusers, Format::Comfyui].map(|format| (*kind, format));
        let ends =
            |(kind, format): (&'static dyn AdapterFiles, Format)| kind.suffixes(format).iter().map(move |s| (kind, *s));
        kinds.iter().flat_map(formats).flat_map(ends)
    };
    let fitting = |suffixes: &[&str]| keys.iter().filter(|key| place(key, suffixes).is_some()).count();
    // Of equals the first.
    let best =
        all().map(|found| (fitting(found.1), found)).reduce(|best, other| if other.0 > best.0 { other } else { best });
    best.filter(|(count, _)| *count > 0).map(|(_, found)| found)
}

/// Reads a file of any of these names. `config` gives what is not among the tensors: PEFT's configuration beside the file,
/// or that in its metadata, by the file's prefix.
pub(super) fn read(
    file: &Path,
    tensors: Tensors,
    config: impl FnOnce(&str) -> Result<Option<PeftConfig>>,
    kinds: &[&'static dyn AdapterFiles],
) -> Result<Adapters> {
    let (of_text, tensors): (Tensors, Tensors) = tensors
        .into_iter()
        .filter(|(key, _)| !key.starts_with(SCORE_HEAD))
        .partition(|(key, _)| TEXT_PREFIXES.iter().any(|prefix| key.starts_with(prefix)));
    let keys: Vec<&String> = tensors.keys().collect();
    let Some(first) = keys.first().copied() else { return Err(without_transformer(file, &of_text)) };
    for key in &keys {
        if let Some((_, kind)) = OTHER_KINDS.iter().find(|(mark, _)| key.contains(mark)) {
            let problem = format!("key {key} is of a {kind} adapter, which is not read: only plain LoRA");
            return Err(Error::file(file, problem));
        }
    }
    // A file has one style of names.
    let (Some((prefix, names)), Some((kind, suffixes))) = (prefix_of(first), suffixes_of(&keys, kinds)) else {
        return Err(unknown_key(file, first));
    };
    let mut layers: BTreeMap<String, LayerTensors> = BTreeMap::new();
    let first = first.clone();
    for (key, tensor) in tensors {
        let other_end = OTHER_ENDS.iter().find(|(end, _)| key.ends_with(end));
        match (key.starts_with(prefix), place(&key, suffixes), other_end) {
            (true, Some((index, layer)), _) => {
                let layer = layer.get(prefix.len()..).ok_or_else(|| unknown_key(file, &key))?;
                if names == LayerNaming::Any && !kohya::is_known(layer) {
                    return Err(unknown_key(file, &key));
                }
                layers.entry(layer.to_string()).or_default().insert(index, tensor);
            }
            (_, None, Some((_, what))) => {
                return Err(Error::file(file, format!("key {key} is {what}, which is not read: only plain LoRA")));
            }
            _ if prefix_of(&key).is_some() && suffixes_of(&[&key], kinds).is_some() => {
                return Err(Error::file(file, format!("mixes two styles of names: {first} and {key}")));
            }
            _ => return Err(unknown_key(file, &key)),
        }
    }
    warn_of_text(file, &of_text);
    let adapters = kind.read(file, layers, config(prefix)?.as_ref())?;
    let mut named = Adapters::new();
    for (layer, adapter) in adapters {
        match names {
            LayerNaming::Diffusers => drop(named.insert(layer, adapter)),
            LayerNaming::Any => named.extend(kohya::split(file, &layer, adapter)?),
        }
    }
    Ok(named)
}

/// The numbers of keys by what they belong to, each with an example.
fn text_keys(of_text: &Tensors) -> String {
    let mut groups: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for key in of_text.keys() {
        let prefix = TEXT_PREFIXES.iter().find(|prefix| key.starts_with(**prefix)).map_or("", |prefix| prefix);
        groups.entry(prefix).or_insert((0, key)).0 += 1;
    }
    let group = |(prefix, (count, key)): (&str, (usize, &str))| {
        format!("{count} of {} (such as {key})", prefix.trim_end_matches(['.', '_']))
    };
    groups.into_iter().map(group).collect::<Vec<_>>().join(", ")
}

fn warn_of_text(file: &Path, of_text: &Tensors) {
    if !of_text.is_empty() {
        let (count, names) = (of_text.len(), text_keys(of_text));
        tracing::warn!(
            "{}: {count} keys belong to text encoders, which are not adapted, and are ignored: {names}",
            file.display()
        );
    }
}

fn without_transformer(file: &Path, of_text: &Tensors) -> Error {
    if of_text.is_empty() {
        return Error::file(file, "holds a score head, but no adapter");
    }
    let problem = format!("holds no adapter of the transformer, only keys of text encoders: {}", text_keys(of_text));
    Error::file(file, problem)
}
