//! COCO's JSON documents, read as a stream: `images`, `annotations` and `categories` in any order, of pictures with
//! captions, panoptic segments or instances.
use crate::data::codec::stored_mask::StoredMask;
use crate::system::guard::guarded;
use crate::system::limits::{Meter, RECORD};
use crate::system::{patience, utf8};
use crate::{Error, Result};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::{fmt, io::BufReader, path::Path};

/// An entry of one of the three lists.
pub enum Item {
    Image(Image),
    Annotation(Annotation),
    Category(Category),
}

/// A picture.
#[derive(Deserialize)]
pub struct Image {
    #[serde(deserialize_with = "number_or_text")]
    pub id: String,
    /// Of a panoptic JSON the annotations may name the picture instead.
    pub file_name: Option<String>,
    pub width: Option<usize>,
    pub height: Option<usize>,
}

/// What is said of a picture: of several kinds of annotation, each has some of the fields.
#[derive(Deserialize)]
pub struct Annotation {
    #[serde(default, deserialize_with = "some_number_or_text")]
    pub image_id: Option<String>,
    /// Captions.
    pub caption: Option<String>,
    /// Panoptic: the PNG.
    pub file_name: Option<String>,
    /// Panoptic.
    pub segments_info: Option<Vec<Segment>>,
    /// Instances and stuff.
    #[serde(default, deserialize_with = "some_label")]
    pub category_id: Option<u32>,
    /// Instances and stuff.
    pub segmentation: Option<StoredMask>,
}

/// A panoptic segment.
#[derive(Deserialize, Serialize, PartialEq)]
pub struct Segment {
    #[serde(deserialize_with = "label")]
    pub id: u32,
    #[serde(deserialize_with = "label")]
    pub category_id: u32,
}

/// A class.
#[derive(Deserialize)]
pub struct Category {
    #[serde(deserialize_with = "label")]
    pub id: u32,
    pub name: String,
}

/// Calls `visit` with every entry of the document at `path`, in its order.
///
/// # Errors
/// The file cannot be read or is no such document, with the place; those of `visit`.
pub fn read(path: &Path, visit: &mut dyn FnMut(Item) -> Result<(), String>) -> Result<()> {
    let failed = |problem: &dyn fmt::Display| Error::file(path, problem);
    let (metered, meter) = RECORD.metered(patience::open(path).map_err(|problem| failed(&problem))?);
    let metered = utf8::without_mark(metered).map_err(|problem| failed(&problem))?;
    let mut reader = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 20, metered));
    guarded(|| {
        let read = reader.deserialize_map(Document { visit: &mut *visit, meter: &meter });
        read.and_then(|()| reader.end()).map_err(|problem| problem.to_string())
    })
    .map_err(|problem: String| failed(&problem))
}

/// The keys whose lists are read.
pub const LISTS: [&str; 3] = ["images", "annotations", "categories"];

/// Calls `visit` with every entry of the list under `key`, one of [`LISTS`].
pub fn read_list<'de, A: SeqAccess<'de>>(
    key: &str,
    mut list: A,
    meter: &Meter,
    visit: &mut dyn FnMut(Item) -> Result<(), String>,
) -> Result<(), A::Error> {
    loop {
        let item = match key {
            "images" => list.next_element()?.map(Item::Image),
            "annotations" => list.next_element()?.map(Item::Annotation),
            _ => list.next_element()?.map(Item::Category),
        };
        let Some(item) = item else { return Ok(()) };
        visit(item).map_err(de::Error::custom)?;
        meter.reset();
    }
}

struct Document<'a> {
    visit: &'a mut dyn FnMut(Item) -> Result<(), String>,
    meter: &'a Meter,
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a COCO document: an object with `images`, `annotations` and `categories`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if LISTS.contains(&key.as_str()) {
                map.next_value_seed(List { key: &key, visit: &mut *self.visit, meter: self.meter })?;
            } else {
                self.meter.unmetered(|| map.next_value::<IgnoredAny>())?;
            }
            self.meter.reset();
        }
        Ok(())
    }
}

/// One of the lists of a document.
struct List<'a> {
    key: &'a str,
    visit: &'a mut dyn FnMut(Item) -> Result<(), String>,
    meter: &'a Meter,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the list `{}`", self.key)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        read_list(self.key, list, self.meter, self.visit)
    }
}

/// Whole numbers up to which a floating-point number is exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number or text")]
enum NumberOrText {
    Whole(i64),
    Large(u64),
    /// As tables write whole numbers where some are missing: `7.0`.
    Float(f64),
    Text(String),
}

fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Whole(number) => number.to_string(),
        NumberOrText::Large(number) => number.to_string(),
        NumberOrText::Float(number) if number.fract() == 0.0 && number.abs() < EXACT => format!("{number:.0}"),
        NumberOrText::Float(number) => {
            return Err(de::Error::custom(format!("{number:?} is no whole number of at most 64 bits")));
        }
        NumberOrText::Text(text) => text,
    })
}

/// The number of a category or a segment.
fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = number_or_text(deserializer)?;
    let problem = |_| de::Error::custom(format!("`{text}` is no whole number from 0 to {}", u32::MAX));
    text.trim().parse().map_err(problem)
}

fn some_label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    label(deserializer).map(Some)
}

fn some_number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    number_or_text(deserializer).map(Some)
}
