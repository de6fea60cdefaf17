//! Captions by image key, read once from a JSON, JSON-lines or Parquet file into a `KeyedTempStore`.
use super::parquet_bounds;
use super::unusable::Unusable;
use crate::config::DataConfig;
use crate::data::keyed_temp_store::{KeyedTempStore, KeyedTempStoreWriter};
use crate::system::guard::guarded;
use crate::system::limits::{Meter, Metered, PARQUET_COLUMN, RECORD};
use crate::system::patience::{self, Patient};
use crate::{Error, Result};
use candle_datasets::hub::FileReader;
use parquet::{file::reader::SerializedFileReader, record::Field, schema::types::Type};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt, fs::File, io::BufReader, path::Path, sync::Arc};

/// The captions of a data set. Memory: 16 bytes a caption; the text is in a temporary file.
pub struct Captions {
    table: KeyedTempStore,
}

/// Which columns (keys of JSON records) hold an image's key and its caption.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Column of the image key.
    pub key: &'a str,
    /// Column of the caption.
    pub caption: &'a str,
}

impl<'a> Columns<'a> {
    /// The columns of `data.caption_key_column` and `data.caption_column`.
    pub fn of(config: &'a DataConfig) -> Self {
        Self { key: &config.caption_key_column, caption: &config.caption_column }
    }
}

impl Captions {
    /// Reads `path`: Parquet (`.parquet`), JSON lines (`.jsonl`, `.ndjson`), otherwise one JSON document, an object
    /// from key to caption or a list of records. Keys match by their normal form (`keyed_temp_store::normalise`).
    ///
    /// # Errors
    /// The file cannot be read, has another form, lacks a column, or holds no caption.
    pub fn read(path: &Path, columns: Columns) -> Result<Self> {
        let failed = |problem: &dyn fmt::Display| Error::file(path, problem);
        let mut writer = KeyedTempStoreWriter::new().map_err(|problem| failed(&problem))?;
        for_each(path, columns, &mut |key, caption| writer.insert(key, caption.as_bytes()))?;
        let table = writer.finish().map_err(|problem| failed(&problem))?;
        if table.is_empty() {
            return Err(failed(&"there is no caption"));
        }
        Ok(Self { table })
    }

    /// How many images have a caption.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no image has a caption.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The caption of the image `key`.
    ///
    /// # Errors
    /// The key matches several captions equally well, or the temporary file cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<String>, Unusable> {
        let bytes = self.table.get(key)?;
        Ok(bytes.map(String::from_utf8).transpose().map_err(|problem| problem.to_string())?)
    }
}

/// The captions of the `count` smallest keys in text order. Memory: these captions alone.
///
/// # Errors
/// Those of [`Captions::read`].
pub fn first_by_key(path: &Path, columns: Columns, count: usize) -> Result<Vec<String>> {
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    for_each(path, columns, &mut |key, caption| {
        // Of entries with identical keys the first counts.
        first.entry(key.to_owned()).or_insert_with(|| caption.to_owned());
        if first.len() > count {
            first.pop_last();
        }
        Ok(())
    })?;
    if first.is_empty() {
        return Err(Error::file(path, "there is no caption"));
    }
    Ok(first.into_values().collect())
}

/// Receives a key and its caption.
type Insert<'a> = dyn FnMut(&str, &str) -> Result<(), String> + 'a;

/// Calls `insert` for every caption of a file, in file order.
fn for_each(path: &Path, columns: Columns, insert: &mut Insert) -> Result<()> {
    let failed = |problem: &dyn fmt::Display| Error::file(path, problem);
    let file = patience::open(path).map_err(|problem| failed(&problem))?;
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    guarded(|| match extension.as_deref() {
        Some("parquet") => read_parquet(file.0, columns, insert),
        Some("jsonl" | "ndjson") => read_lines(file, columns, insert),
        _ => read_document(file, columns, insert),
    })
    .map_err(|problem: String| failed(&problem))
}

/// The first `count` sentences of `caption`, or all of them for 0, with single spaces between words. A sentence ends
/// at `.`, `!` or `?`, closing quotes and brackets included, before white space or the end.
///
/// The released code splits at every full stop and nowhere else. Plain sentences come out equal, but it cuts `3.5` in
/// two and fails at a caption without a full stop.
pub fn first_sentences(caption: &str, count: usize) -> String {
    let mut kept = Vec::new();
    let mut sentences = 0;
    for word in caption.split_whitespace() {
        kept.push(word);
        let bare = word.trim_end_matches(['"', '\'', '”', '’', ')', ']', '»']);
        if bare.ends_with(['.', '!', '?']) {
            sentences += 1;
            if sentences == count {
                break;
            }
        }
    }
    kept.join(" ")
}

fn read_parquet(file: File, columns: Columns, insert: &mut Insert) -> Result<(), String> {
    let problem = |problem: parquet::errors::ParquetError| format!("no readable Parquet file: {problem}");
    parquet_bounds::check_footer(&file)?;
    let pages = file.try_clone().map_err(|problem| problem.to_string())?;
    let reader = SerializedFileReader::new(file).map_err(problem)?;
    let schema = reader.metadata().file_metadata().schema();
    let column = |name: &str| {
        let found = schema.get_fields().iter().find(|field| field.name() == name).cloned();
        found.ok_or_else(|| {
            let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
            format!("there is no column `{name}`, only: {}", names.join(", "))
        })
    };
    let fields: Vec<Arc<Type>> = vec![column(columns.key)?, column(columns.caption)?];
    for group in reader.metadata().row_groups() {
        let read = |path: &[String]| path.first().is_some_and(|name| name == columns.key || name == columns.caption);
        for column in group.columns().iter().filter(|column| read(column.column_path().parts())) {
            PARQUET_COLUMN.check(u64::try_from(column.uncompressed_size()).map_err(|problem| problem.to_string())?)?;
            let (start, length) = column.byte_range();
            parquet_bounds::check_pages(&pages, start, length)?;
        }
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(problem)?;
    for (number, row) in reader.get_row_iter(Some(projection)).map_err(problem)?.enumerate() {
        let row = row.map_err(problem)?;
        let text = |name: &str| {
            let field = row.get_column_iter().find(|(column, _)| *column == name).map(|(_, field)| field);
            parquet_text(field.unwrap_or(&Field::Null))
                .map_err(|()| format!("row {}, column `{name}` is neither text nor a whole number", number + 1))
        };
        if let (Some(key), Some(caption)) = (text(columns.key)?, text(columns.caption)?) {
            insert(&key, &caption)?;
        }
    }
    Ok(())
}

/// Text or a whole number as text; `None` for null.
fn parquet_text(field: &Field) -> Result<Option<String>, ()> {
    Ok(Some(match field {
        Field::Null => return Ok(None),
        Field::Str(text) => text.clone(),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_err(|_| ())?.to_owned(),
        Field::Byte(_) | Field::Short(_) | Field::Int(_) | Field::Long(_) => field.to_string(),
        Field::UByte(_) | Field::UShort(_) | Field::UInt(_) | Field::ULong(_) => field.to_string(),
        _ => return Err(()),
    }))
}

/// A reader with a buffer of one megabyte, and the meter that limits the length of a record.
fn records(file: Patient<File>) -> (BufReader<Metered<Patient<File>>>, Meter) {
    let (metered, meter) = RECORD.metered(file);
    (BufReader::with_capacity(1 << 20, metered), meter)
}

fn read_lines(file: Patient<File>, columns: Columns, insert: &mut Insert) -> Result<(), String> {
    let (reader, meter) = records(file);
    let records = serde_json::Deserializer::from_reader(reader).into_iter();
    for (number, record) in records.enumerate() {
        let record = record.map_err(|problem| problem.to_string())?;
        insert_record(&record, columns, insert).map_err(|problem| format!("record {}: {problem}", number + 1))?;
        meter.reset();
    }
    Ok(())
}

fn insert_record(record: &Map<String, Value>, columns: Columns, insert: &mut Insert) -> Result<(), String> {
    let text = |name: &str| match record.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) if !number.is_f64() => Ok(number.to_string()),
        Some(_) => Err(format!("`{name}` is neither text nor a whole number")),
        None => {
            let names: Vec<&str> = record.keys().map(String::as_str).collect();
            Err(format!("there is no `{name}`, only: {}", names.join(", ")))
        }
    };
    let (key, caption) = (text(columns.key)?, text(columns.caption)?);
    insert(&key, &caption)
}

fn read_document(file: Patient<File>, columns: Columns, insert: &mut Insert) -> Result<(), String> {
    let (reader, meter) = records(file);
    let mut reader = serde_json::Deserializer::from_reader(reader);
    let insert = &mut |key: &str, caption: &str| {
        meter.reset();
        insert(key, caption)
    };
    let read = reader.deserialize_any(CaptionDocument { columns, insert }).and_then(|()| reader.end());
    read.map_err(|problem| {
        let hint = "an object from key to caption or a list of records; JSON lines are called `.jsonl`";
        format!("{problem} (wanted: {hint})")
    })
}

/// Streams a JSON document's captions, entry by entry.
struct CaptionDocument<'a> {
    columns: Columns<'a>,
    insert: &'a mut Insert<'a>,
}

impl<'de> Visitor<'de> for CaptionDocument<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("captions")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, caption)) = map.next_entry::<String, String>()? {
            (self.insert)(&key, &caption).map_err(de::Error::custom)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(record) = list.next_element()? {
            insert_record(&record, self.columns, self.insert).map_err(de::Error::custom)?;
        }
        Ok(())
    }
}
