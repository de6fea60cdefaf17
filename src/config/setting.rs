//! How each type of setting is read from a TOML value, and the checks that values must pass.
use super::document::Value;
use super::problems::nearest;
use super::*;

/// An enum of which every value has a name.
pub trait Choice: Copy + 'static {
    const NAMES: &'static [(&'static str, Self)];

    /// The name of this value.
    fn name(self) -> &'static str
    where
        Self: PartialEq,
    {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }

    /// The value of this name; the error lists the names and the nearest.
    fn from_name(name: &str) -> Result<Self, String> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, value)| *value).ok_or_else(|| {
            let hint = nearest(name, Self::NAMES.iter().map(|(n, _)| *n)).unwrap_or_default();
            format!("expected {}; the nearest is {hint:?}", one_of::<Self>())
        })
    }
}

fn one_of<T: Choice>() -> String {
    let names: Vec<String> = T::NAMES.iter().map(|(name, _)| format!("{name:?}")).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

impl Choice for WeightType {
    const NAMES: &'static [(&'static str, Self)] = &[("f32", Self::F32), ("bf16", Self::Bf16), ("f16", Self::F16)];
}

impl Choice for TextEncoderKind {
    const NAMES: &'static [(&'static str, Self)] =
        &[("clip_l", Self::ClipL), ("clip_g", Self::ClipG), ("t5", Self::T5)];
}

impl Choice for DataFormat {
    const NAMES: &'static [(&'static str, Self)] =
        &[("sa1b", Self::Sa1b), ("coco", Self::Coco), ("folder", Self::Folder)];
}

impl Choice for Crop {
    const NAMES: &'static [(&'static str, Self)] =
        &[("center", Self::Center), ("random", Self::Random), ("stretch", Self::Stretch)];
}

impl Choice for SegmentationProtocol {
    const NAMES: &'static [(&'static str, Self)] = &[("present", Self::Present), ("all", Self::All)];
}

impl Choice for BestBy {
    const NAMES: &'static [(&'static str, Self)] = &[("miou", Self::Miou), ("held_out_flow", Self::HeldOutFlow)];
}

impl Choice for Alignment {
    const NAMES: &'static [(&'static str, Self)] = &[("sigmoid", Self::Sigmoid), ("softmax", Self::Softmax)];
}

impl Choice for AttentionForm {
    const NAMES: &'static [(&'static str, Self)] =
        &[("logits", Self::Logits), ("softmax", Self::Softmax), ("softmax_text", Self::SoftmaxText)];
}

impl Choice for FocalProbability {
    const NAMES: &'static [(&'static str, Self)] = &[("sigmoid", Self::Sigmoid), ("logit", Self::Logit)];
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => match text.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
                Some(index) => Ok(Self::Cuda(index)),
                None => Err(format!("expected {}", <Self as Setting>::expected())),
            },
        }
    }
}

/// A type that a setting can have.
pub(super) trait Setting: Sized {
    /// What belongs there, as in "expected …".
    fn expected() -> String;

    /// The value, or `None` if it is something else.
    fn convert(value: &Value) -> Option<Self>;

    /// The valid value that a wrong one is most like, where values have names.
    fn nearest(_text: &str) -> Option<&'static str> {
        None
    }

    /// The value, or what was expected, what was found, and the nearest valid value.
    fn read(value: &Value) -> Result<Self, String> {
        Self::convert(value).ok_or_else(|| {
            let hint = match value {
                Value::Text(text) => Self::nearest(text).map(|n| format!("; the nearest is {n:?}")),
                _ => None,
            };
            format!("expected {}, found {value}{}", Self::expected(), hint.unwrap_or_default())
        })
    }
}

impl<T: Choice> Setting for T {
    fn expected() -> String {
        one_of::<T>()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => T::from_name(text).ok(),
            _ => None,
        }
    }

    fn nearest(text: &str) -> Option<&'static str> {
        nearest(text, T::NAMES.iter().map(|(name, _)| *name))
    }
}

macro_rules! integer_setting {
    ($($integer:ty),*) => {$(
        impl Setting for $integer {
            fn expected() -> String {
                "a whole number, 0 or more".into()
            }

            fn convert(value: &Value) -> Option<Self> {
                match value {
                    Value::Integer(integer) => Self::try_from(*integer).ok(),
                    _ => None,
                }
            }
        }
    )*};
}
integer_setting!(u64, u32, usize);

impl Setting for f64 {
    fn expected() -> String {
        "a number".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Float(number) => Some(*number),
            Value::Integer(integer) => Some(*integer as f64),
            _ => None,
        }
    }
}

impl Setting for bool {
    fn expected() -> String {
        "true or false".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        }
    }
}

impl Setting for String {
    fn expected() -> String {
        "a string".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl Setting for PathBuf {
    fn expected() -> String {
        "a path (a string)".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        String::convert(value).map(Self::from)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn expected() -> String {
        format!("a list, each item {}", T::expected())
    }

    fn convert(value: &Value) -> Option<Self> {
        Self::read(value).ok()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let Value::List(items) = value else {
            return Err(format!("expected {}, found {value}", Self::expected()));
        };
        let item = |(i, item)| T::read(item).map_err(|problem| format!("item {}: {problem}", i + 1));
        items.iter().enumerate().map(item).collect()
    }
}

impl Setting for [f64; 2] {
    fn expected() -> String {
        "a list of two numbers".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        Vec::<f64>::convert(value)?.try_into().ok()
    }
}

impl Setting for DeviceChoice {
    fn expected() -> String {
        "\"auto\", \"cpu\" or \"cuda:N\"".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        String::convert(value)?.parse().ok()
    }

    fn nearest(text: &str) -> Option<&'static str> {
        nearest(text, ["auto", "cpu", "cuda:0"])
    }
}

impl Setting for LayerChoice {
    fn expected() -> String {
        "\"all\" or a list of block indices (from 0)".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) if text == "all" => Some(Self::All),
            _ => Vec::convert(value).map(Self::List),
        }
    }

    fn nearest(_text: &str) -> Option<&'static str> {
        Some("all")
    }
}

/// The names of [`HeadMaps`]; a head's number is the other form of it.
const HEAD_MAPS: [(&str, HeadMaps); 3] = [("keep", HeadMaps::Keep), ("mean", HeadMaps::Mean), ("max", HeadMaps::Max)];

impl Setting for HeadMaps {
    fn expected() -> String {
        "\"keep\", \"mean\", \"max\" or a head's index (from 0)".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => HEAD_MAPS.iter().find(|(name, _)| name == text).map(|(_, kind)| *kind),
            _ => usize::convert(value).map(Self::One),
        }
    }

    fn nearest(text: &str) -> Option<&'static str> {
        nearest(text, HEAD_MAPS.map(|(name, _)| name))
    }
}

/// Indices of blocks; one alone needs no list.
pub(super) struct Blocks(pub Vec<usize>);

impl Setting for Blocks {
    fn expected() -> String {
        "a block index (from 0) or a list of them".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(_) => usize::convert(value).map(|layer| Self(vec![layer])),
            _ => Vec::convert(value).map(Self),
        }
    }
}

impl Setting for GradientCheckpointing {
    fn expected() -> String {
        "\"auto\", true or false".into()
    }

    fn convert(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) if text == "auto" => Some(Self::Auto),
            Value::Bool(true) => Some(Self::On),
            Value::Bool(false) => Some(Self::Off),
            _ => None,
        }
    }

    fn nearest(_text: &str) -> Option<&'static str> {
        Some("auto")
    }
}

/// A check: at least `min`.
pub(super) fn at_least<T: PartialOrd + std::fmt::Debug>(min: T) -> impl Fn(&T) -> Result<(), String> {
    move |value| if *value >= min { Ok(()) } else { Err(format!("must be at least {min:?}, is {value:?}")) }
}

/// A check: more than zero.
pub(super) fn positive(value: &f64) -> Result<(), String> {
    if *value > 0.0 { Ok(()) } else { Err(format!("must be above 0, is {value:?}")) }
}

/// A check: from `min` to `max`, both included.
pub(super) fn within<T: PartialOrd + std::fmt::Debug>(min: T, max: T) -> impl Fn(&T) -> Result<(), String> {
    move |value| {
        let ok = *value >= min && *value <= max;
        if ok { Ok(()) } else { Err(format!("must be from {min:?} to {max:?}, is {value:?}")) }
    }
}

/// A check: something in it.
pub(super) fn not_empty(value: &impl AsRef<std::ffi::OsStr>) -> Result<(), String> {
    if value.as_ref().is_empty() { Err("must not be empty".into()) } else { Ok(()) }
}

/// A check: a list with something in it, and nothing twice.
pub(super) fn distinct<T: PartialEq + std::fmt::Debug>(list: &[T]) -> Result<(), String> {
    if list.is_empty() {
        return Err("must not be empty".into());
    }
    match list.iter().enumerate().find(|(i, item)| list[..*i].contains(item)) {
        Some((_, item)) => Err(format!("{item:?} is listed twice")),
        None => Ok(()),
    }
}
