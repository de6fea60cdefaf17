//! A shard: a safetensors file with the tensors `KEY.NAME` of its entries, sorted by key, then one checksum for each
//! entry.
use super::recipe::{Key, Recipe};
use crate::system::error::{Error, Result};
use crate::system::patience::{self, Patient, patiently};
use crate::system::platform::read_exact_at;
use crate::system::tensor_file::{self, SafetensorsHeader};
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Version of the layout; readers refuse other versions.
const VERSION: &str = "1";
const FORMAT: &str = "seg4diff cache";
/// Name of the checksum tensor: CRC-32C, u32, one for each entry, sorted by key.
const CHECKSUMS: &str = "checksums";

/// Where an entry is stored in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardEntry {
    pub key: Key,
    /// In bytes from the start of the file.
    pub offset: u64,
    pub checksum: u32,
}

/// Writes a shard atomically.
pub fn write(file: &Path, recipe: &Recipe, entries: &BTreeMap<Key, Vec<f32>>) -> Result<()> {
    let mut tensors = Vec::new();
    for (key, values) in entries {
        if values.len() != recipe.values() {
            let problem = format!("entry {} has {} values, expected {}", key.name(), values.len(), recipe.values());
            return Err(Error::file(file, problem));
        }
        let named = recipe.tensors.iter();
        tensors.extend(named.map(|(name, shape)| (format!("{}.{name}", key.name()), Dtype::F32, shape.clone())));
    }
    tensors.push((CHECKSUMS.to_string(), Dtype::U32, vec![entries.len()]));
    tensor_file::write(file, tensors, &metadata(recipe), |out| {
        let mut checksums = Vec::new();
        for values in entries.values() {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            checksums.extend(crc32c::crc32c(&bytes).to_le_bytes());
            out.write_all(&bytes)?;
        }
        out.write_all(&checksums)
    })
}

/// Lists the entries of a shard without reading their values.
///
/// # Errors
/// The file is truncated or damaged, of another version or recipe, or an entry has a wrong shape.
pub fn read_entries(file: &Path, recipe: &Recipe) -> Result<Vec<ShardEntry>> {
    let header = tensor_file::header(file)?;
    check_metadata(file, recipe, &header.metadata)?;
    let checksums = checksums(file, &header)?;
    let names = header.tensors.keys().filter(|name| *name != CHECKSUMS);
    let keys = names.map(|name| match name.split_once('.').and_then(|(key, _)| Key::parse(key)) {
        Some(key) => Ok(key),
        None => Err(damaged(file, format!("tensor {name} belongs to no entry"))),
    });
    let keys = keys.collect::<Result<BTreeSet<Key>>>()?;
    if checksums.len() != keys.len() || header.tensors.len() != keys.len() * recipe.tensors.len() + 1 {
        return Err(damaged(file, format!("{} checksums of {} entries", checksums.len(), keys.len())));
    }
    let entries = keys.into_iter().zip(checksums);
    entries.map(|(key, checksum)| entry(file, recipe, &header, key, checksum)).collect()
}

/// Reads the values of an entry.
///
/// # Errors
/// The file cannot be read, or the checksum differs.
pub fn read_values(file: &Path, recipe: &Recipe, offset: u64, checksum: u32) -> Result<Vec<f32>> {
    let bytes = read(file, offset, recipe.values() * 4)?;
    if crc32c::crc32c(&bytes) != checksum {
        return Err(damaged(file, format!("the entry at byte {offset} does not have its checksum")));
    }
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(damaged(file, format!("the entry at byte {offset} holds numbers that are not finite"))),
    }
}

fn entry(file: &Path, recipe: &Recipe, header: &SafetensorsHeader, key: Key, checksum: u32) -> Result<ShardEntry> {
    let (mut first, mut end) = (None, None);
    for (name, shape) in &recipe.tensors {
        let name = format!("{}.{name}", key.name());
        let Some(info) = header.tensors.get(&name) else {
            return Err(damaged(file, format!("tensor {name} is missing")));
        };
        if info.dtype != Dtype::F32 || info.shape != *shape {
            let found = format!("{:?} of {:?}", info.dtype, info.shape);
            return Err(damaged(file, format!("tensor {name} is {found}, expected F32 of {shape:?}")));
        }
        let (start, stop) = info.data_offsets;
        let bytes = 4 * shape.iter().product::<usize>();
        if stop.checked_sub(start) != Some(bytes) || end.is_some_and(|end| end != start) {
            return Err(damaged(file, format!("tensor {name} has a wrong offset")));
        }
        first.get_or_insert(start);
        end = Some(stop);
    }
    let offset = header.data + first.unwrap_or_default() as u64;
    if header.data + end.unwrap_or_default() as u64 > header.bytes {
        return Err(damaged(file, format!("entry {} reaches beyond the file", key.name())));
    }
    Ok(ShardEntry { key, offset, checksum })
}

fn checksums(file: &Path, header: &SafetensorsHeader) -> Result<Vec<u32>> {
    let info = header.tensors.get(CHECKSUMS).filter(|info| info.dtype == Dtype::U32 && info.shape.len() == 1);
    let Some(info) = info else {
        return Err(damaged(file, format!("tensor {CHECKSUMS} is missing or of another type")));
    };
    let (start, stop) = info.data_offsets;
    let (start, stop) = (header.data + start as u64, header.data + stop as u64);
    if start > stop || stop > header.bytes || stop - start != 4 * info.shape[0] as u64 {
        return Err(damaged(file, format!("tensor {CHECKSUMS} has a wrong offset")));
    }
    let bytes = read(file, start, (stop - start) as usize)?;
    Ok(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

fn read(file: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = patience::open(file).and_then(|Patient(file)| patiently(|| read_exact_at(&file, &mut bytes, offset)));
    read.map(|()| bytes).map_err(|e| Error::file(file, e))
}

fn metadata(recipe: &Recipe) -> BTreeMap<String, String> {
    let own = [("format", FORMAT), ("version", VERSION), ("holds", recipe.kind)];
    let own = own.map(|(name, value)| (name.to_string(), value.to_string()));
    recipe.facts.clone().into_iter().chain(own).collect()
}

fn check_metadata(file: &Path, recipe: &Recipe, found: &BTreeMap<String, String>) -> Result<()> {
    if found.get("format").map(String::as_str) != Some(FORMAT) {
        return Err(Error::file(file, "not a shard of a cache"));
    }
    if found.get("version").map(String::as_str) != Some(VERSION) {
        let version = found.get("version").map_or("none", String::as_str);
        return Err(Error::file(file, format!("version {version} of the cache, expected {VERSION}")));
    }
    let expected = metadata(recipe);
    let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let show = |value: Option<&String>| value.map_or("nothing".to_string(), String::clone);
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| expected.get(*name) != found.get(*name))
        .map(|name| format!("{name}: {} in the cache, {} now", show(found.get(name)), show(expected.get(name))))
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let problem = "the cache is of another model or other settings; this run needs one in another folder";
    Err(Error::file(file, format!("{problem}\n  {}", differences.join("\n  "))))
}

fn damaged(file: &Path, problem: String) -> Error {
    Error::file(file, format!("damaged: {problem}; remove the file and run `seg4diff prepare cache` again"))
}
