//! How each type of setting is read from a TOML value, and the checks that values must pass.
use super::document::{TomlValue, WINDOWS_PATHS, unexpected};
use super::problems::nearest;
use serde::Serialize;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::PathBuf;

/// An enum of which every value has a name.
pub trait Choice: Clone + PartialEq + 'static {
    /// Every name, with its value.
    const NAMES: &'static [(&'static str, Self)];

    /// The name of this value; empty for one without.
    fn name(&self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| value == self).map_or("", |(name, _)| name)
    }

    /// The value of this name; the error lists the names and the nearest.
    fn from_name(name: &str) -> Result<Self, String> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone()).ok_or_else(|| {
            let hint = nearest(name, Self::NAMES.iter().map(|(n, _)| *n)).unwrap_or_default();
            let names: Vec<String> = Self::NAMES.iter().map(|(name, _)| format!("{name:?}")).collect();
            format!("expected {}; the nearest is {hint:?}", one_of(names.iter().map(String::as_str)))
        })
    }
}

/// `a, b or c`.
pub(super) fn one_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<&str> = texts.into_iter().collect();
    match texts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => texts.concat(),
    }
}

/// A type that a setting can have.
pub(super) trait Setting: Sized + Serialize {
    /// What belongs there, as in "expected …".
    fn expected() -> String;

    /// The value, or `None` if it is something else. An implementation has this or [`Self::read`].
    fn convert(value: &TomlValue) -> Option<Self> {
        Self::read(value).ok()
    }

    /// The valid value that a wrong one is most like, where values have names.
    fn nearest(_text: &str) -> Option<&'static str> {
        None
    }

    /// The names of values as TOML, each with what it means.
    fn choices() -> Vec<(String, &'static str)> {
        Vec::new()
    }

    /// The value, or what was expected, what was found, and the nearest valid value.
    fn read(value: &TomlValue) -> Result<Self, String> {
        Self::convert(value).ok_or_else(|| {
            let nearest = value.as_str().and_then(Self::nearest);
            let hint = nearest.map(|nearest| format!("; the nearest is {nearest:?}")).unwrap_or_default();
            unexpected(value, &Self::expected()) + &hint
        })
    }
}

/// `simple_setting!(TYPE, "expected", value => its conversion)`.
macro_rules! simple_setting {
    ($type:ty, $expected:literal, $value:ident => $converted:expr) => {
        impl Setting for $type {
            fn expected() -> String {
                $expected.into()
            }

            fn convert($value: &TomlValue) -> Option<Self> {
                $converted
            }
        }
    };
}
simple_setting!(u64, "a whole number, 0 or more", value => Self::try_from(value.as_integer()?).ok());
simple_setting!(u32, "a whole number, 0 or more", value => Self::try_from(value.as_integer()?).ok());
simple_setting!(usize, "a whole number, 0 or more", value => Self::try_from(value.as_integer()?).ok());
simple_setting!(f64, "a number", value => value.as_float().or(value.as_integer().map(|integer| integer as f64)));
simple_setting!(bool, "true or false", value => value.as_bool());
simple_setting!(String, "a string", value => value.as_str().map(String::from));
simple_setting!([f64; 2], "a list of two numbers", value => Vec::convert(value)?.try_into().ok());

impl Setting for PathBuf {
    fn expected() -> String {
        "a path (a string)".into()
    }

    fn read(value: &TomlValue) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| unexpected(value, &Self::expected()))?;
        is_path(text).map(|()| text.into())
    }
}

/// # Errors
/// The text has control characters, which `\t` and its like in a Windows path stand for.
pub(super) fn is_path(text: &str) -> Result<(), String> {
    match text.contains(char::is_control) {
        true => Err(format!("{text:?} has a control character; {WINDOWS_PATHS}")),
        false => Ok(()),
    }
}

/// A setting that may be absent: where it is there, a `T`.
impl<T: Setting> Setting for Option<T> {
    fn expected() -> String {
        T::expected()
    }

    fn read(value: &TomlValue) -> Result<Self, String> {
        T::read(value).map(Some)
    }

    fn nearest(text: &str) -> Option<&'static str> {
        T::nearest(text)
    }

    fn choices() -> Vec<(String, &'static str)> {
        T::choices()
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn expected() -> String {
        format!("a list, each item {}", T::expected())
    }

    fn choices() -> Vec<(String, &'static str)> {
        T::choices()
    }

    fn read(value: &TomlValue) -> Result<Self, String> {
        let TomlValue::Array(items) = value else {
            return Err(unexpected(value, &Self::expected()));
        };
        let item = |(i, item)| T::read(item).map_err(|problem| format!("item {}: {problem}", i + 1));
        items.iter().enumerate().map(item).collect()
    }
}

/// Says what is wrong with a value.
type Test<T> = dyn Fn(&T) -> Result<(), String>;

/// What a value must be beyond its type.
pub(super) struct Check<T> {
    /// For help: "from 1 to 512".
    pub text: String,
    pub test: Box<Test<T>>,
}

/// A check with errors of its own.
pub(super) fn check<T>(text: &str, test: impl Fn(&T) -> Result<(), String> + 'static) -> Check<T> {
    Check { text: text.into(), test: Box::new(test) }
}

/// A check whose error is "must be TEXT, is VALUE".
fn bounded<T: Debug>(text: String, holds: impl Fn(&T) -> bool + 'static) -> Check<T> {
    let bound = text.clone();
    let test = move |value: &T| if holds(value) { Ok(()) } else { Err(format!("must be {bound}, is {value:?}")) };
    Check { text, test: Box::new(test) }
}

/// At least `min`.
pub(super) fn at_least<T: PartialOrd + Debug + 'static>(min: T) -> Check<T> {
    bounded(format!("at least {min:?}"), move |value| *value >= min)
}

/// More than zero.
pub(super) fn positive() -> Check<f64> {
    bounded("above 0".into(), |value| *value > 0.0)
}

/// From `min` to `max`, both included.
pub(super) fn within<T: PartialOrd + Debug + 'static>(min: T, max: T) -> Check<T> {
    bounded(format!("from {min:?} to {max:?}"), move |value| *value >= min && *value <= max)
}

/// This check where there is a value.
pub(super) fn if_given<T: 'static>(check: Check<T>) -> Check<Option<T>> {
    Check { text: check.text, test: Box::new(move |value| value.as_ref().map_or(Ok(()), &check.test)) }
}

/// Something in it.
pub(super) fn not_empty<T: AsRef<OsStr>>() -> Check<T> {
    check("not empty", |value: &T| is_not_empty(value))
}

/// The error of [`not_empty`].
pub(super) fn is_not_empty(value: &impl AsRef<OsStr>) -> Result<(), String> {
    if value.as_ref().is_empty() { Err("must not be empty".into()) } else { Ok(()) }
}

/// A list with something in it, and nothing twice.
pub(super) fn distinct<T: PartialEq + Debug>() -> Check<Vec<T>> {
    check("at least one, none twice", |list: &Vec<T>| is_distinct(list))
}

/// The error of [`distinct`].
pub(super) fn is_distinct<T: PartialEq + Debug>(list: &[T]) -> Result<(), String> {
    if list.is_empty() {
        return Err("must not be empty".into());
    }
    match list.iter().enumerate().find(|(i, item)| list[..*i].contains(item)) {
        Some((_, item)) => Err(format!("{item:?} is listed twice")),
        None => Ok(()),
    }
}
