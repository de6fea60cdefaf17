//! COCO panoptic annotations: the category of each segment of each image, in a [`KeyedTempStore`].
use crate::data::{
    codec::labels::Classes,
    keyed_temp_store::{KeyedTempStore, KeyedTempStoreWriter},
    sources::unusable::Unusable,
};
use crate::system::guard::guarded;
use crate::system::limits::{Meter, RECORD};
use crate::system::patience;
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::{fmt, io::BufReader, path::Path};

/// The segments of a panoptic data set. Memory: 16 bytes an image; the segments are in a temporary file.
pub struct Panoptic {
    /// Image key to pairs (segment id, category id) of little-endian `u32`.
    table: KeyedTempStore,
    /// The JSON's `categories`.
    pub categories: Classes,
}

#[derive(Deserialize)]
struct PanopticAnnotation {
    file_name: String,
    segments_info: Vec<Segment>,
}

#[derive(Deserialize)]
struct Segment {
    id: u32,
    category_id: u32,
}

#[derive(Deserialize)]
struct Category {
    id: u32,
    name: String,
}

impl Panoptic {
    /// Streams the panoptic JSON at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or lacks `annotations` or `categories`.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |problem: &dyn fmt::Display| Error::file(path, problem);
        let file = patience::open(path).map_err(|problem| failed(&problem))?;
        let mut writer = KeyedTempStoreWriter::new().map_err(|problem| failed(&problem))?;
        let (metered, meter) = RECORD.metered(file);
        let mut reader = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 20, metered));
        let read = guarded(|| {
            let read = reader.deserialize_map(PanopticDocument { writer: &mut writer, meter: &meter });
            read.and_then(|categories| reader.end().map(|()| categories)).map_err(|problem| problem.to_string())
        });
        let categories = read.map_err(|problem: String| failed(&problem))?;
        let table = writer.finish().map_err(|problem| failed(&problem))?;
        if table.is_empty() || categories.is_empty() {
            return Err(failed(&"there are no `annotations` or no `categories`"));
        }
        let categories = Classes::new(categories.into_iter().map(|category| (category.id, category.name)));
        Ok(Self { table, categories })
    }

    /// The pairs (segment id, category id) of the image `key`.
    ///
    /// # Errors
    /// The key matches several images equally well, or the temporary file cannot be read.
    pub fn segments(&self, key: &str) -> Result<Option<Vec<(u32, u32)>>, Unusable> {
        let bytes = self.table.get(key)?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte));
        Ok(bytes.map(|bytes| bytes.chunks_exact(8).map(|pair| (number(&pair[..4]), number(&pair[4..]))).collect()))
    }
}

/// Visits the whole file; yields its categories.
struct PanopticDocument<'a> {
    writer: &'a mut KeyedTempStoreWriter,
    meter: &'a Meter,
}

impl<'de> Visitor<'de> for PanopticDocument<'_> {
    type Value = Vec<Category>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("COCO panoptic annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Category>, A::Error> {
        let mut categories = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "annotations" => map.next_value_seed(AnnotationList { writer: self.writer, meter: self.meter })?,
                "categories" => categories = map.next_value()?,
                _ => {
                    self.meter.unmetered(|| map.next_value::<IgnoredAny>())?;
                }
            }
            self.meter.reset();
        }
        Ok(categories)
    }
}

/// Visits the list `annotations`, image by image.
struct AnnotationList<'a> {
    writer: &'a mut KeyedTempStoreWriter,
    meter: &'a Meter,
}

impl<'de> DeserializeSeed<'de> for AnnotationList<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AnnotationList<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of annotations with `file_name` and `segments_info`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(annotation) = list.next_element::<PanopticAnnotation>()? {
            let segments = annotation.segments_info.iter();
            let bytes: Vec<u8> =
                segments.flat_map(|segment| [segment.id, segment.category_id]).flat_map(u32::to_le_bytes).collect();
            self.writer.insert(&annotation.file_name, &bytes).map_err(de::Error::custom)?;
            self.meter.reset();
        }
        Ok(())
    }
}
