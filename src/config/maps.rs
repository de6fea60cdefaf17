//! How attention becomes maps where it is looked at: which heads, which softmax, which scale.
use super::document::Value;
use super::problems::nearest;
use super::setting::{Choice, Setting};
use serde::{Serialize, Serializer};
use std::str::FromStr;

/// Which of a block's heads a map is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MapHeads {
    /// The mean over heads.
    #[default]
    Mean,
    /// At each position the strongest head.
    Max,
    /// One head, counted from 0.
    One(usize),
}

/// Which maps are scaled to [0, 1] over the image: the least value subtracted, then divided by the greatest and 1e-6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MapNormalize {
    #[default]
    None,
    /// Each token's, before the mean over the tokens of a name.
    Before,
    /// Each name's, after that mean.
    After,
    Both,
}

impl MapHeads {
    /// The one head, where it is one.
    pub fn one(self) -> Option<usize> {
        match self {
            Self::One(head) => Some(head),
            Self::Mean | Self::Max => None,
        }
    }
}

impl MapNormalize {
    pub fn before(self) -> bool {
        matches!(self, Self::Before | Self::Both)
    }

    pub fn after(self) -> bool {
        matches!(self, Self::After | Self::Both)
    }
}

impl FromStr for MapHeads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mean" => Ok(Self::Mean),
            "max" => Ok(Self::Max),
            _ => text.parse().map(Self::One).map_err(|_| "expected mean, max or the number of a head".into()),
        }
    }
}

impl Serialize for MapHeads {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Mean => serializer.serialize_str("mean"),
            Self::Max => serializer.serialize_str("max"),
            Self::One(head) => serializer.serialize_u64(*head as u64),
        }
    }
}

impl Setting for MapHeads {
    fn expected() -> String {
        "\"mean\", \"max\" or the number of a head (from 0)".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) if text == "mean" => Some(Self::Mean),
            Value::Text(text) if text == "max" => Some(Self::Max),
            _ => usize::convert(value).map(Self::One),
        }
    }

    fn nearest(text: &str) -> Option<&'static str> {
        nearest(text, ["mean", "max"])
    }
}

impl Choice for MapNormalize {
    const NAMES: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("before", Self::Before), ("after", Self::After), ("both", Self::Both)];
}

/// Blocks as people say them: `block 9`, or `blocks 7, 8, 9`.
pub fn named_blocks(layers: &[usize]) -> String {
    let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
    format!("block{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(", "))
}
