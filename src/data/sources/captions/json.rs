//! Captions in JSON: lines of records, a list of records, an object from key to caption, or COCO's captions.
use super::columns::{Columns, Insert};
use crate::data::sources::coco::{self, Item};
use crate::system::limits::{Meter, RECORD};
use crate::system::patience::Patient;
use crate::system::utf8;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::{fmt, fs::File, io::BufReader, io::Read};

/// A deserializer with a buffer of one megabyte, and the meter that limits the length of a record.
#[allow(clippy::type_complexity)]
fn open(
    file: Patient<File>,
) -> Result<(serde_json::Deserializer<serde_json::de::IoRead<BufReader<impl Read>>>, Meter), String> {
    let (metered, meter) = RECORD.metered(file);
    let text = utf8::without_mark(metered).map_err(|problem| problem.to_string())?;
    Ok((serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 20, text)), meter))
}

/// Calls `insert` for every record of JSON lines.
pub fn read_lines(file: Patient<File>, columns: Columns, insert: &mut Insert) -> Result<(), String> {
    let (mut reader, meter) = open(file)?;
    for number in 1.. {
        if reader.end().is_ok() {
            break;
        }
        let record = Record(columns).deserialize(&mut reader);
        let inserted = record.map_err(|problem| problem.to_string()).and_then(|(key, caption)| insert(&key, &caption));
        inserted.map_err(|problem| format!("record {number}: {problem}"))?;
        meter.reset();
    }
    Ok(())
}

/// Calls `insert` for every caption of a JSON document.
pub fn read_document(file: Patient<File>, columns: Columns, insert: &mut Insert) -> Result<(), String> {
    let (mut reader, meter) = open(file)?;
    let mut coco = Coco::default();
    let document = Document { columns, insert: &mut *insert, meter: &meter, coco: &mut coco };
    let read = reader.deserialize_any(document).and_then(|()| reader.end());
    read.map_err(|problem| {
        let hint = "an object from key to caption or to a record with it, or a list of records; JSON lines are called `.jsonl`";
        format!("{problem} (wanted: {hint})")
    })?;
    coco.finish(insert)
}

/// The key and the caption of a record.
struct Record<'a>(Columns<'a>);

impl<'de> DeserializeSeed<'de> for Record<'_> {
    type Value = (String, String);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Record<'_> {
    type Value = (String, String);

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a record with `{}` and `{}`", self.0.key, self.0.caption)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut names: Vec<String> = Vec::new();
        let mut found: [Option<String>; 2] = [None, None];
        while let Some(name) = map.next_key::<String>()? {
            let columns = [self.0.key, self.0.caption];
            if columns.contains(&name.as_str()) {
                let text = map.next_value_seed(Text(&name))?;
                for (column, found) in columns.into_iter().zip(&mut found).filter(|(column, _)| *column == name) {
                    if found.as_ref().is_some_and(|other| *other != text) {
                        return Err(de::Error::custom(format!("`{column}` is there twice: {found:?} and {text:?}")));
                    }
                    *found = Some(text.clone());
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            names.push(name);
        }
        let [key, caption] = found;
        let lacks = |name: &str| de::Error::custom(format!("there is no `{name}`, only: {}", names.join(", ")));
        Ok((key.ok_or_else(|| lacks(self.0.key))?, caption.ok_or_else(|| lacks(self.0.caption))?))
    }
}

/// Text or a whole number, as text, of the column of this name.
struct Text<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        match serde::Deserialize::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(text),
            serde_json::Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
            _ => Err(de::Error::custom(format!("`{}` is neither text nor a whole number", self.0))),
        }
    }
}

/// Streams a JSON document's captions, entry by entry.
struct Document<'a, 'i> {
    columns: Columns<'a>,
    insert: &'a mut Insert<'i>,
    meter: &'a Meter,
    coco: &'a mut Coco,
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("captions")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let (mut is_coco, mut other) = (false, None);
        while let Some(key) = map.next_key::<String>()? {
            match map.next_value_seed(EntryOf { key: &key, document: &mut self })? {
                Entry::Caption(caption) => (self.insert)(&key, &caption).map_err(de::Error::custom)?,
                Entry::Coco => is_coco = true,
                Entry::Other => other = other.or(Some(key)),
            }
            self.meter.reset();
        }
        // COCO's documents have an `info` besides, and `licenses`.
        match other.filter(|_| !is_coco) {
            Some(key) => {
                let problem = format!("`{key}` is neither text nor a record with `{}`", self.columns.caption);
                Err(de::Error::custom(problem))
            }
            None => Ok(()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        for number in 1.. {
            let record = list.next_element_seed(Record(self.columns));
            let failed = |problem: &dyn fmt::Display| de::Error::custom(format!("record {number}: {problem}"));
            let Some((key, caption)) = record.map_err(|problem| failed(&problem))? else { break };
            (self.insert)(&key, &caption).map_err(|problem| failed(&problem))?;
            self.meter.reset();
        }
        Ok(())
    }
}

/// What stands under a key of a document.
enum Entry {
    Caption(String),
    Coco,
    Other,
}

/// Reads what stands under a key.
struct EntryOf<'e, 'a, 'i> {
    key: &'e str,
    document: &'e mut Document<'a, 'i>,
}

impl<'de> DeserializeSeed<'de> for EntryOf<'_, '_, '_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EntryOf<'_, '_, '_> {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the caption of `{}`", self.key)
    }

    fn visit_str<E>(self, caption: &str) -> Result<Entry, E> {
        Ok(Entry::Caption(caption.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let mut found = Entry::Other;
        while let Some(name) = map.next_key::<String>()? {
            match name == self.document.columns.caption {
                true => found = Entry::Caption(map.next_value_seed(Text(&name))?),
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entry, A::Error> {
        if coco::LISTS.contains(&self.key) {
            let Document { insert, meter, coco, .. } = self.document;
            coco::read_list(self.key, list, meter, &mut |item| coco.add(item, insert))?;
            return Ok(Entry::Coco);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Entry::Other)
    }
}

/// COCO's captions, of which the first of an image counts. Memory: the images' ids and names.
#[derive(Default)]
struct Coco {
    /// Image id to file name.
    names: HashMap<String, String>,
    /// Images that have a caption.
    captioned: HashSet<String>,
    /// Captions whose images are not listed yet.
    waiting: Vec<(String, String)>,
    /// Captions behind an image's first.
    others: u64,
}

impl Coco {
    fn add(&mut self, item: Item, insert: &mut Insert) -> Result<(), String> {
        match item {
            Item::Image(image) => {
                let name = image.file_name.ok_or_else(|| format!("the image {} has no `file_name`", image.id))?;
                if let Some(other) = self.names.insert(image.id.clone(), name.clone())
                    && other != name
                {
                    return Err(format!("the image {} is both {other} and {name}", image.id));
                }
                Ok(())
            }
            Item::Annotation(annotation) => {
                let id = annotation.image_id.ok_or("an annotation has no `image_id`")?;
                let lacks =
                    || format!("an annotation of image {id} has no `caption`: the file holds other annotations");
                let caption = annotation.caption.ok_or_else(lacks)?;
                if !self.captioned.insert(id.clone()) {
                    self.others += 1;
                    return Ok(());
                }
                match self.names.get(&id) {
                    Some(name) => insert(name, &caption),
                    None => {
                        self.waiting.push((id, caption));
                        Ok(())
                    }
                }
            }
            Item::Category(_) => Ok(()),
        }
    }

    /// Inserts what waits for its image.
    fn finish(self, insert: &mut Insert) -> Result<(), String> {
        for (id, caption) in &self.waiting {
            let name = self
                .names
                .get(id)
                .ok_or_else(|| format!("an annotation is of image {id}, which is not in `images`"))?;
            insert(name, caption)?;
        }
        if self.others > 0 {
            tracing::info!("of images with several captions the first is used, {} others are not", self.others);
        }
        Ok(())
    }
}
