//! PEFT's `LoraConfig`: what an adapter file leaves out.
use super::stored::PeftConfig;
use crate::system::error::Result;
use fancy_regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// What it says about scales, and what PEFT needs to build the adapter.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct LoraConfig {
    pub peft_type: Option<String>,
    pub base_model_name_or_path: Option<String>,
    pub task_type: Option<String>,
    #[serde(default)]
    pub inference_mode: bool,
    pub r: usize,
    pub lora_alpha: f64,
    /// Rank and alpha of the modules that have others.
    #[serde(default)]
    pub rank_pattern: Patterns<usize>,
    #[serde(default)]
    pub alpha_pattern: Patterns<f64>,
    /// A list, or one pattern. Which modules are adapted is read from the tensors.
    #[serde(default)]
    pub target_modules: serde_json::Value,
    #[serde(default)]
    pub lora_dropout: f64,
    #[serde(default)]
    pub fan_in_fan_out: bool,
    #[serde(default = "no_bias")]
    pub bias: String,
    #[serde(default)]
    pub use_rslora: bool,
    #[serde(default)]
    pub use_dora: bool,
    /// How the matrices began; some ways change the base model's weights, too.
    #[serde(default, skip_serializing)]
    pub init_lora_weights: serde_json::Value,
    /// All other settings.
    #[serde(flatten, skip_serializing)]
    pub others: BTreeMap<String, serde_json::Value>,
}

/// Ways to begin with which PEFT takes the first product off the base model's weights, and adapts what is left.
const OF_OTHER_WEIGHTS: [&str; 5] = ["pissa", "corda", "olora", "loftq", "lora_ga"];

/// Settings with which an adapter's effect is another than that of its two matrices.
const OTHER_EFFECTS: [&str; 8] = [
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
];

fn no_bias() -> String {
    "none".into()
}

impl LoraConfig {
    /// # Errors
    /// It is none, or that of another kind of adapter.
    pub fn parse(config: &PeftConfig) -> Result<Self> {
        let parsed = serde_json::from_str::<Self>(&config.text);
        let parsed = parsed.map_err(|e| config.error(format!("not a LoRA configuration of PEFT: {e}")))?;
        let Self { use_dora, fan_in_fan_out, bias, .. } = &parsed;
        let kind = parsed.peft_type.as_deref().unwrap_or("LORA");
        if kind != "LORA" || *use_dora || *fan_in_fan_out || bias != "none" {
            return Err(config.error(format!(
                "only plain LoRA is supported, this has peft_type {kind}, use_dora {use_dora}, \
                 fan_in_fan_out {fan_in_fan_out}, bias {bias}"
            )));
        }
        let is_set =
            |value: &serde_json::Value| !matches!(value, serde_json::Value::Null | serde_json::Value::Bool(false));
        if let Some((key, value)) =
            parsed.others.iter().find(|(key, value)| OTHER_EFFECTS.contains(&key.as_str()) && is_set(value))
        {
            return Err(config.error(format!("only plain LoRA is supported, this has {key} {value}")));
        }
        let init = parsed.init_lora_weights.as_str().unwrap_or_default().to_lowercase();
        if OF_OTHER_WEIGHTS.iter().any(|way| init.starts_with(way)) {
            return Err(config.error(format!(
                "init_lora_weights is {init:?}: the adapter belongs to base weights that PEFT changed with it; convert it to \
                 plain LoRA with save_pretrained(…, path_initial_model_for_weight_conversion = …)"
            )));
        }
        Ok(parsed)
    }

    /// Alpha of a layer whose tensors are of this rank, over that of its pattern.
    ///
    /// # Errors
    /// A pattern is no regular expression, or gives the layer another rank than its tensors have; `place` is where.
    pub fn alpha(&self, place: &PeftConfig, layer: &str, rank: usize) -> Result<f64> {
        let alpha = self.alpha_pattern.of(layer).map_err(|e| place.error(e))?.unwrap_or(self.lora_alpha);
        let said = self.rank_pattern.of(layer).map_err(|e| place.error(e))?.unwrap_or(self.r);
        if said != rank {
            return Err(place.error(format!("gives {layer} the rank {said}, its tensors have {rank}")));
        }
        Ok(if self.use_rslora { alpha * (rank as f64).sqrt() } else { alpha })
    }
}

/// Values by patterns of the modules' names, in the order of the file.
#[derive(Default)]
pub(super) struct Patterns<T>(pub Vec<(String, T)>);

impl<T: Copy> Patterns<T> {
    /// The value of the first pattern that matches the end of a module's name (PEFT's `get_pattern_key`:
    /// `re.match(rf"(.*\.)?({key})$", name)`).
    fn of(&self, layer: &str) -> Result<Option<T>, String> {
        for (pattern, value) in &self.0 {
            let failed = |problem: fancy_regex::Error| format!("the pattern {pattern:?}: {problem}");
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(failed)?;
            if regex.is_match(layer).map_err(failed)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Vec<(String, T)>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of values by patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries: Self::Value = vec![];
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    // As in Python, a key that comes again keeps its place and has its last value.
                    match entries.iter_mut().find(|(known, _)| *known == key) {
                        Some((_, known)) => *known = value,
                        None => entries.push((key, value)),
                    }
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData)).map(Self)
    }
}
