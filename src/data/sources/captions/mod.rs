//! Captions by image key, read once from a file of any of the usual forms into a `KeyedTempStore`.
mod archive;
mod columns;
mod csv;
mod json;
mod parquet;
mod parquet_bounds;

use super::unusable::Unusable;
use crate::data::keyed_temp_store::{ClaimedStore, KeyedTempStoreWriter, TableEntry};
use crate::system::guard::guarded;
use crate::system::{patience, utf8};
use crate::{Error, Result};
use columns::Insert;
use std::{collections::BTreeMap, path::Path};

pub use columns::Columns;

/// The captions of a data set. Memory: 20 bytes a caption; the text is in a temporary file.
pub struct Captions(ClaimedStore);

impl Captions {
    /// Reads `path`, whose name says its form:
    ///
    /// | name | form |
    /// | --- | --- |
    /// | `.parquet` | Parquet |
    /// | `.jsonl`, `.ndjson` | JSON lines, a record a line |
    /// | `.csv`, `.tsv` | a table with a header |
    /// | `.tar`, `.tar.gz`, `.tgz` | an archive of `KEY.txt` |
    /// | other | a JSON document: an object from key to caption, a list of records, or COCO's captions |
    ///
    /// In `metadata.*` the columns are `file_name` and `text` where none are named. Of COCO's several captions of an
    /// image the first in the file counts. Keys match as `KeyedTempStore` says. A byte-order mark and white space
    /// around a caption are dropped.
    ///
    /// # Errors
    /// The file cannot be read, has another form, lacks a column, is not UTF-8, has two captions of one key, or has
    /// no caption.
    pub fn read(path: &Path, columns: Columns) -> Result<Self> {
        let failed = |problem: String| Error::file(path, problem);
        let mut writer = KeyedTempStoreWriter::new().map_err(failed)?;
        for_each(path, columns, &mut |key, caption| writer.insert(key, caption.as_bytes()))?;
        let table = writer.finish_distinct(differ).map_err(failed)?;
        if table.is_empty() {
            return Err(failed("there is no caption".into()));
        }
        Ok(Self(ClaimedStore::new(table)))
    }

    /// How many images have a caption.
    pub fn count(&self) -> usize {
        self.0.table.len()
    }

    /// The caption of the image `key`.
    ///
    /// # Errors
    /// The key matches several captions equally well, or the temporary file cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<String>, Unusable> {
        self.0.table.get(key)?.map(text).transpose()
    }

    /// The caption of the image `key`, which no other image may have.
    ///
    /// # Errors
    /// As [`get`](Self::get), and where the caption went to another image already, since its key fits both.
    pub fn take(&self, key: &str) -> Result<Option<String>, Unusable> {
        let refused = |entry: &TableEntry| {
            let problem = format!("the caption of `{}` fits {key} and another image of that name", entry.key);
            format!("data.captions: {problem}; write their folders in its keys")
        };
        self.0.take(key, refused)?.map(text).transpose()
    }

    /// How many captions no image has [taken](Self::take), and the keys of `count` of them.
    ///
    /// # Errors
    /// The temporary file cannot be read.
    pub fn left(&self, count: usize) -> Result<(u64, Vec<String>)> {
        self.0.left(count)
    }
}

fn text(entry: TableEntry) -> Result<String, Unusable> {
    Ok(String::from_utf8(entry.value).map_err(|problem| problem.to_string())?)
}

/// What is wrong with two captions of one image.
fn differ(first: &TableEntry, second: &TableEntry) -> String {
    let text = |entry: &TableEntry| String::from_utf8_lossy(&entry.value).into_owned();
    let keys = match first.key == second.key {
        true => format!("the key `{}` is there twice", first.key),
        false => format!("the keys `{}` and `{}` mean one image", first.key, second.key),
    };
    format!("{keys}, with the captions {:?} and {:?}; leave one of them", text(first), text(second))
}

/// The captions of the `count` smallest keys in text order. Memory: these captions alone.
///
/// # Errors
/// Those of [`Captions::read`].
pub fn first_by_key(path: &Path, columns: Columns, count: usize) -> Result<Vec<String>> {
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    for_each(path, columns, &mut |key, caption| {
        let other = first.entry(key.to_owned()).or_insert_with(|| caption.to_owned());
        if other != caption {
            return Err(format!("the key `{key}` is there twice, with the captions {other:?} and {caption:?}"));
        }
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

/// Calls `insert` for every caption of a file, in file order.
fn for_each(path: &Path, columns: Columns, insert: &mut Insert) -> Result<()> {
    let columns = columns.in_file(path);
    let insert = &mut |key: &str, caption: &str| {
        let bare = |text| str::trim(text).trim_start_matches(utf8::MARK).trim_start();
        match bare(key) {
            "" => Err("a key is empty".to_owned()),
            key => insert(key, bare(caption)),
        }
    };
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().to_ascii_lowercase());
    let is = |extensions: &[&str]| extensions.iter().any(|extension| name.ends_with(extension));
    let read = || {
        let file = patience::open(path).map_err(|problem| problem.to_string())?;
        match () {
            () if is(&[".parquet"]) => parquet::read(file.0, columns, insert),
            () if is(&[".jsonl", ".ndjson"]) => json::read_lines(file, columns, insert),
            () if is(&[".csv"]) => csv::read(file, b',', columns, insert),
            () if is(&[".tsv"]) => csv::read(file, b'\t', columns, insert),
            () if is(&[".tar"]) => archive::read(file, insert),
            () if is(&[".tar.gz", ".tgz"]) => archive::read_compressed(file, insert),
            () => json::read_document(file, columns, insert),
        }
    };
    guarded(read).map_err(|problem: String| Error::file(path, problem))
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
