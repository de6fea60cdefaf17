//! The formats that name modules as diffusers does: diffusers' own, PEFT's with its configuration beside it, and what the
//! paper's released code saves (read alone).
use super::{Parts, Tensors, unknown_key};
use crate::model::adapters::lora::{Adapter, Lora};
use crate::model::weights;
use crate::system::error::{Error, Result};
use crate::system::limits::MODEL_JSON;
use crate::system::whole_file;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) const PEFT_CONFIG: &str = "adapter_config.json";
/// Where diffusers keeps the `LoraConfig` of the adapters in a file, each key behind its model's prefix.
const DIFFUSERS_CONFIG: &str = "lora_adapter_metadata";
const DIFFUSERS_PREFIX: &str = "transformer.";
const PEFT_PREFIX: &str = "base_model.model.";
/// Of the released code's whole model: its backbone's transformer. Alpha is the rank there.
const RELEASED_PREFIX: &str = "backbone.transformer.";
/// The score head that lies beside the adapter in its files; it serves maps, not the model.
const RELEASED_SCORE_HEAD: &str = "attn_mlp.";
/// Pairs of suffixes for A and B. diffusers looks at one key to tell which are used, so a file has one kind.
const SUFFIXES: [(&str, &str); 3] = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
];

/// Writes `transformer.MODULE.lora_A.weight` and `lora_B`, B multiplied with the scale: diffusers refuses `.alpha`
/// keys for SD3 and then takes the scale for 1.
pub(super) fn write_diffusers(adapter: &Adapter, file: &Path) -> Result<()> {
    let mut tensors = Tensors::new();
    for (module, lora) in adapter {
        tensors.insert(format!("{DIFFUSERS_PREFIX}{module}.lora_A.weight"), lora.down.clone());
        let scaled = if lora.scale() == 1.0 { lora.up.clone() } else { (&lora.up * lora.scale())? };
        tensors.insert(format!("{DIFFUSERS_PREFIX}{module}.lora_B.weight"), scaled);
    }
    weights::write(file, &tensors, &BTreeMap::from([("format".into(), "pt".into())]))
}

/// What PEFT's `LoraConfig` says about scales, and what it needs to build the adapter.
#[derive(Serialize, Deserialize)]
struct LoraConfig {
    #[serde(default)]
    peft_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    inference_mode: bool,
    r: usize,
    lora_alpha: f64,
    /// Rank and alpha of the modules that have others, by a pattern of their names.
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    /// A list, or one pattern. Which modules are adapted is read from the tensors.
    #[serde(default)]
    target_modules: serde_json::Value,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default = "no_bias")]
    bias: String,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
}

fn no_bias() -> String {
    "none".into()
}

impl LoraConfig {
    /// Alpha of a module: of the first pattern that its name ends with, else the common one.
    ///
    /// PEFT takes patterns for regular expressions; those that tools write are names or ends of names.
    fn alpha(&self, module: &str) -> f64 {
        let applies = |pattern: &str| {
            let name = pattern.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".");
            module == name || module.ends_with(&format!(".{name}"))
        };
        let own = self.alpha_pattern.iter().find(|(pattern, _)| applies(pattern));
        own.map_or(self.lora_alpha, |(_, alpha)| *alpha)
    }

    fn check(&self, file: &Path) -> Result<()> {
        let kind = self.peft_type.as_deref().unwrap_or("LORA");
        if kind != "LORA" || self.use_dora || self.fan_in_fan_out || self.bias != "none" {
            return Err(Error::file(
                file,
                format!(
                    "only plain LoRA is supported, this has peft_type {kind}, use_dora {}, fan_in_fan_out {}, bias {}",
                    self.use_dora, self.fan_in_fan_out, self.bias
                ),
            ));
        }
        Ok(())
    }
}

/// Writes a folder for `PeftModel.from_pretrained`: A and B as trained, rank and alpha in the configuration.
pub(super) fn write_peft(adapter: &Adapter, folder: &Path) -> Result<()> {
    let mut tensors = Tensors::new();
    for (module, lora) in adapter {
        tensors.insert(format!("{PEFT_PREFIX}{module}.lora_A.weight"), lora.down.clone());
        tensors.insert(format!("{PEFT_PREFIX}{module}.lora_B.weight"), lora.up.clone());
    }
    weights::write(
        &folder.join(super::Format::Peft.file_name()),
        &tensors,
        &BTreeMap::from([("format".into(), "pt".into())]),
    )?;
    let Some(first) = adapter.values().next() else { return Ok(()) };
    let other_rank = adapter.iter().filter(|(_, l)| l.rank() != first.rank());
    let other_alpha = adapter.iter().filter(|(_, l)| l.alpha != first.alpha);
    let config = LoraConfig {
        peft_type: Some("LORA".into()),
        base_model_name_or_path: None,
        task_type: None,
        inference_mode: true,
        r: first.rank(),
        lora_alpha: first.alpha,
        rank_pattern: other_rank.map(|(module, l)| (module.clone(), l.rank())).collect(),
        alpha_pattern: other_alpha.map(|(module, l)| (module.clone(), l.alpha)).collect(),
        // whole names, so that a choice of layers holds
        target_modules: adapter.keys().cloned().collect(),
        lora_dropout: 0.0,
        fan_in_fan_out: false,
        bias: no_bias(),
        use_rslora: false,
        use_dora: false,
    };
    let file = folder.join(PEFT_CONFIG);
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::file(&file, e))?;
    whole_file::write_atomically(&file, |out| writeln!(out, "{text}"))
}

/// Reads a file of diffusers', PEFT's or the released code's names; the scale comes from PEFT's configuration beside it, from that in
/// diffusers' metadata, or is 1.
pub(super) fn read(file: &Path, tensors: Tensors, metadata: &BTreeMap<String, String>) -> Result<Adapter> {
    let expected =
        format!("({DIFFUSERS_PREFIX}… or {PEFT_PREFIX}… with lora_A and lora_B, or lora_unet_joint_blocks_…)");
    let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
    // the first key decides on prefix and suffixes
    let mut style: Option<(&str, (&str, &str), String)> = None;
    for (key, tensor) in tensors.into_iter().filter(|(key, _)| !key.starts_with(RELEASED_SCORE_HEAD)) {
        let prefix = [DIFFUSERS_PREFIX, PEFT_PREFIX, RELEASED_PREFIX].into_iter().find(|p| key.starts_with(p));
        let suffixes = SUFFIXES.into_iter().find(|(a, b)| key.ends_with(a) || key.ends_with(b));
        let (Some(prefix), Some(suffixes)) = (prefix, suffixes) else {
            return Err(unknown_key(file, &key, &expected));
        };
        match &style {
            Some((p, s, _)) if (*p, *s) == (prefix, suffixes) => {}
            Some((_, _, other)) => {
                return Err(Error::file(file, format!("mixes two styles of names: {other} and {key}")));
            }
            None => style = Some((prefix, suffixes, key.clone())),
        }
        let rest = &key[prefix.len()..];
        if let Some(module) = rest.strip_suffix(suffixes.0) {
            modules.entry(module.to_string()).or_default().down = Some(tensor);
        } else if let Some(module) = rest.strip_suffix(suffixes.1) {
            modules.entry(module.to_string()).or_default().up = Some(tensor);
        }
    }
    if style.is_none() {
        return Err(Error::file(file, "holds a score head, but no adapter"));
    }
    let config = match style {
        Some((PEFT_PREFIX, ..)) => Some(peft_config(&file.with_file_name(PEFT_CONFIG))?),
        _ => metadata.get(DIFFUSERS_CONFIG).map(|text| diffusers_config(file, text)).transpose()?,
    };
    let mut adapter = Adapter::new();
    for (module, parts) in modules {
        let (down, up) = parts.pair(file, &module)?;
        let rank = down.dims()[0] as f64;
        let alpha = match &config {
            None => rank,
            Some(config) if config.use_rslora => config.alpha(&module) * rank.sqrt(),
            Some(config) => config.alpha(&module),
        };
        adapter.insert(module, Lora { down, up, alpha });
    }
    Ok(adapter)
}

fn peft_config(file: &Path) -> Result<LoraConfig> {
    let text = MODEL_JSON
        .read_text(file)
        .map_err(|e| Error::file(file, format!("{e}; PEFT keeps an adapter's rank and alpha in it")))?;
    let config: LoraConfig =
        serde_json::from_str(&text).map_err(|e| Error::file(file, format!("not a LoRA configuration of PEFT: {e}")))?;
    config.check(file)?;
    Ok(config)
}

/// The transformer's part of diffusers' metadata: a JSON object with keys such as `transformer.lora_alpha`.
fn diffusers_config(file: &Path, text: &str) -> Result<LoraConfig> {
    let wrong = |e: &dyn std::fmt::Display| Error::file(file, format!("metadata {DIFFUSERS_CONFIG}: {e}"));
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).map_err(|e| wrong(&e))?;
    let own = all.into_iter().filter_map(|(k, v)| Some((k.strip_prefix(DIFFUSERS_PREFIX)?.to_string(), v))).collect();
    let config: LoraConfig = serde_json::from_value(serde_json::Value::Object(own)).map_err(|e| wrong(&e))?;
    config.check(file)?;
    Ok(config)
}
