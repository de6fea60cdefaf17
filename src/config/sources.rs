//! The tables `[[data.sources]]`: sources with settings of their own.
use super::data_choices::{DataFormat, MaskForm, Palette};
use super::document::{TomlValue, unexpected};
use super::problems::nearest;
use super::setting::Setting;
use serde::Serialize;
use std::path::PathBuf;

/// A source with settings of its own; what it does not give is that of `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceConfig {
    /// Tar shards or a folder; may be a pattern.
    pub path: String,
    /// How often its samples come in an epoch.
    pub repeats: u32,
    /// The share of its samples that an epoch takes, other ones in every epoch; above 1 some come again.
    pub weight: f64,
    /// As `data.format`.
    pub format: Option<DataFormat>,
    /// As `data.captions`.
    pub captions: Option<PathBuf>,
    /// As `data.labels`.
    pub labels: Option<PathBuf>,
    /// As `data.panoptic`.
    pub panoptic: Option<PathBuf>,
    /// As `data.instances`.
    pub instances: Option<PathBuf>,
    /// As `data.classes`.
    pub classes: Option<PathBuf>,
    /// As `data.masks`.
    pub masks: Option<MaskForm>,
    /// As `data.palette`.
    pub palette: Option<Palette>,
    /// As `data.ignore`.
    pub ignore: Option<u32>,
}

const KEYS: [&str; 12] = [
    "path",
    "repeats",
    "weight",
    "format",
    "captions",
    "labels",
    "panoptic",
    "instances",
    "classes",
    "masks",
    "palette",
    "ignore",
];
/// Samples come at most so often in an epoch.
const MOST_REPEATS: u32 = 10_000;

impl Setting for SourceConfig {
    fn expected() -> String {
        format!("a table [[data.sources]] with path and, where wanted, {}", KEYS[1..].join(", "))
    }

    fn read(value: &TomlValue) -> Result<Self, String> {
        let TomlValue::Table(table) = value else {
            return Err(unexpected(value, &Self::expected()));
        };
        if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!(
                "unknown key {unknown}; the nearest is {}",
                nearest(unknown, KEYS).unwrap_or_default()
            ));
        }
        let source = Self {
            path: get(table, "path")?.filter(|path: &String| !path.is_empty()).ok_or("path is missing")?,
            repeats: get(table, "repeats")?.unwrap_or(1),
            weight: get(table, "weight")?.unwrap_or(1.0),
            format: get(table, "format")?,
            captions: get(table, "captions")?,
            labels: get(table, "labels")?,
            panoptic: get(table, "panoptic")?,
            instances: get(table, "instances")?,
            classes: get(table, "classes")?,
            masks: get(table, "masks")?,
            palette: get(table, "palette")?,
            ignore: get(table, "ignore")?,
        };
        if !(1..=MOST_REPEATS).contains(&source.repeats) {
            return Err(format!("repeats must be from 1 to {MOST_REPEATS}, is {}", source.repeats));
        }
        if !(source.weight > 0.0 && source.weight <= f64::from(MOST_REPEATS)) {
            return Err(format!("weight must be above 0 and at most {MOST_REPEATS}, is {:?}", source.weight));
        }
        Ok(source)
    }
}

/// The value of a key, if the table has it.
fn get<T: Setting>(table: &toml::Table, key: &str) -> Result<Option<T>, String> {
    table.get(key).map(|value| T::read(value).map_err(|problem| format!("{key}: {problem}"))).transpose()
}
