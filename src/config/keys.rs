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

/// Declares a section: `[name] pub struct Name(reader, inputs…) { keys } with { other fields }`.
macro_rules! keys {
    (
        $(#[doc = $about:literal])*
        [$($section:ident $(. $within:ident)?)?] pub struct $name:ident($reader:ident $(, $input:ident: $input_type:ty)*) {
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
                let section = concat!($(stringify!($section) $(, ".", stringify!($within))?)?);
                $reader.begin_section(section, &[$($about),*]);
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
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

            fn convert(value: &$crate::config::document::TomlValue) -> Option<Self> {
                let named = value.as_str().and_then(|text| <Self as $crate::config::Choice>::from_name(text).ok());
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
