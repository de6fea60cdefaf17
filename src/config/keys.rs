//! How keys are declared: one declaration gives the field, its reader with every error, and its documentation.
//!
//! ```text
//! keys! {
//!     /// What the section is for.
//!     [lora] pub struct LoraConfig(reader) {
//!         /// What the key does: in rustdoc, in the template and in docs/config.md.
//!         rank: usize = usual(16), within(1, 4096);
//!     }
//! }
//! ```
//! makes a struct with this field and `LoraConfig::read(&mut Reader)`. Defaults may name the keys above them.
use super::document::Value;
use super::setting::{Check, Setting};

/// What the declaration of a key says beside its name and type, as help shows it.
#[derive(Clone, Debug)]
pub struct KeyDoc {
    /// With its section, such as `lora.rank`.
    pub name: String,
    /// What it does, in sentences.
    pub doc: String,
    /// The values that it takes, as in "expected …".
    pub values: String,
    /// Names that it takes, as TOML, each with what it means.
    pub choices: Vec<(String, &'static str)>,
    /// What it is where it is not given.
    pub default: DefaultKind,
    /// As TOML: its value if it has one, else an example.
    pub value: String,
    /// Whether the file or an override gives it.
    pub given: bool,
}

/// What a key is where it is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultKind {
    /// An error.
    Required,
    /// The same value in every run.
    Value,
    /// What this key or sentence says.
    From(&'static str),
    /// Nothing.
    Absent,
}

/// A section and its keys, in the order of their declarations.
#[derive(Clone, Debug)]
pub struct SectionDoc {
    /// Empty for the keys above all sections.
    pub name: &'static str,
    /// What it is for, in sentences.
    pub doc: String,
    /// Whether this is an optional section that is not there.
    pub absent: bool,
    /// Its keys.
    pub keys: Vec<KeyDoc>,
}

/// How a key is read: its default, and what it accepts.
pub(super) struct Rule<T> {
    pub default: T,
    pub kind: DefaultKind,
    /// Shown where there is no value, as TOML.
    pub example: &'static str,
    pub check: Option<Check<T>>,
    pub expected: fn() -> String,
    pub read: fn(&Value) -> Result<T, String>,
}

impl<T: Setting> Rule<T> {
    fn new(kind: DefaultKind, default: T, example: &'static str) -> Self {
        Self { default, kind, example, check: None, expected: T::expected, read: T::read }
    }
}

impl<T> Rule<T> {
    /// The value must pass this check.
    pub fn checked(self, check: Check<T>) -> Self {
        Self { check: Some(check), ..self }
    }

    /// The value is written as an `S`.
    pub fn written_as<S: Setting + Into<T>>(self) -> Self {
        Self { expected: S::expected, read: |value| S::read(value).map(S::into), ..self }
    }
}

/// A key with this default.
pub(super) fn usual<T: Setting>(default: T) -> Rule<T> {
    Rule::new(DefaultKind::Value, default, "")
}

/// A key whose default follows from others; `from` is the key, or says in words how.
pub(super) fn follows<T: Setting>(from: &'static str, default: T) -> Rule<T> {
    Rule::new(DefaultKind::From(from), default, "")
}

/// A key without a default; `example` is TOML.
pub(super) fn required<T: Setting + Default>(example: &'static str) -> Rule<T> {
    Rule::new(DefaultKind::Required, T::default(), example)
}

/// A key that may be left out; `example` is TOML.
pub(super) fn optional<T: Setting>(example: &'static str) -> Rule<Option<T>> {
    Rule::new(DefaultKind::Absent, None, example)
}

/// Declares a section: `[name] pub struct Name(reader, inputs…) { keys } with { other fields }`.
macro_rules! keys {
    (
        $(#[doc = $about:literal])*
        [$($section:ident)?] pub struct $name:ident($reader:ident $(, $input:ident: $input_type:ty)*) {
            $( $(#[doc = $doc:literal])* $key:ident: $type:ty = $rule:expr $(, $check:expr)?; )*
        }
        $( with { $( $(#[$attribute:meta])* $field:ident: $field_type:ty = $value:expr; )* } )?
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $key: $type, )*
            $( $( $(#[$attribute])* pub $field: $field_type, )* )?
        }

        impl $name {
            /// Reads the keys; what is wrong with them is noted in the reader.
            pub(in crate::config) fn read($reader: &mut $crate::config::reader::Reader $(, $input: $input_type)*) -> Self {
                $reader.begin_section(stringify!($($section)?), &[$($about),*]);
                $( let $key: $type = $reader.read(stringify!($key), &[$($doc),*], $rule$(.checked($check))?); )*
                $( $( let $field: $field_type = $value; )* )?
                Self { $($key,)* $($($field,)*)? }
            }
        }
    };
}
pub(super) use keys;

/// Declares an enum of which every value has a name in TOML; an `or` variant takes values of another type.
macro_rules! choices {
    (
        $(#[doc = $about:literal])*
        pub enum $name:ident $(: $marker:ident)? { $( $(#[doc = $doc:literal])* $variant:ident = $text:literal, )+ }
        $( or { $(#[doc = $other_doc:literal])* $other:ident($other_type:ty): $expected:literal } )?
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $( $(#[doc = $doc])* $variant, )+
            $( $(#[doc = $other_doc])* $other($other_type), )?
        }

        $( impl $marker for $name {} )?

        impl $crate::config::Choice for $name {
            const NAMES: &'static [(&'static str, Self)] = &[$(($text, Self::$variant)),+];
        }

        impl $crate::config::setting::Setting for $name {
            fn expected() -> String {
                let names = [$(concat!("\"", $text, "\"")),+].into_iter();
                $crate::config::setting::one_of(names$(.chain([$expected]))?)
            }

            fn convert(value: &$crate::config::document::Value) -> Option<Self> {
                let named = match value {
                    $crate::config::document::Value::Text(text) => <Self as $crate::config::Choice>::from_name(text).ok(),
                    _ => None,
                };
                $(let named = named.or_else(|| <$other_type>::convert(value).map(Self::$other));)?
                named
            }

            fn nearest(text: &str) -> Option<&'static str> {
                $crate::config::problems::nearest(text, [$($text),+])
            }

            fn choices() -> Vec<(String, &'static str)> {
                let names = [$((format!("{:?}", $text), concat!($($doc),*))),+].into_iter();
                $(let names = names.chain([($expected.to_string(), concat!($($other_doc),*))]);)?
                names.collect()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $( Self::$variant => serializer.serialize_str($text), )+
                    $( Self::$other(value) => <$other_type as serde::Serialize>::serialize(value, serializer), )?
                }
            }
        }
    };
}
pub(super) use choices;
