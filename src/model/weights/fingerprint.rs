//! Content hashes: of whole small files, and a quick fingerprint of a base model's many gigabytes.
use super::gguf;
use crate::system::error::{Error, Result};
use crate::system::limits::MODEL_JSON;
use crate::system::patience;
use crate::system::tensor_file::header;
use sha2::{Digest, Sha256};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Blocks of a weights file that its fingerprint looks at, and bytes of each.
const BLOCKS: u64 = 16;
const BLOCK: u64 = 4096;

/// SHA-256 of a whole file, in hexadecimal, and its length in bytes.
pub fn sha256(file: &Path) -> Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut reader = patience::open(file).map_err(|e| Error::file(file, e))?;
    let bytes = std::io::copy(&mut reader, &mut HashWriter(&mut hash)).map_err(|e| Error::file(file, e))?;
    Ok((hex(hash), bytes))
}

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// A base model's identity: SHA-256 over its files in the given order, whatever they are called.
///
/// Of a `.safetensors` or `.gguf` file go in: its length, its header (every tensor's name, type, shape and place), and 16
/// blocks of 4 KiB evenly spread over the data, first and last included; of any other file (configs, tokenizers) everything.
/// So it takes milliseconds for 16 GB, tells models and finetunes apart, and misses a change of single values
/// between the blocks.
pub fn fingerprint(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files {
        let data = match file.extension() {
            Some(extension) if extension == "safetensors" => header(file)?.data,
            _ if gguf::is_named_so(file) => gguf::tensors(file, 0)?.1,
            _ => {
                let content = MODEL_JSON.read(file).map_err(|e| Error::file(file, e))?;
                hash.update((content.len() as u64).to_le_bytes());
                hash.update(content);
                continue;
            }
        };
        add_samples(file, data, &mut hash).map_err(|e| Error::file(file, e))?;
    }
    Ok(hex(hash))
}

/// Adds a file of tensors whose header was checked, and whose data begin at byte `data`.
fn add_samples(file: &Path, data: u64, hash: &mut Sha256) -> std::io::Result<()> {
    let mut reader = patience::open(file)?;
    let length = reader.0.metadata()?.len();
    hash.update(length.to_le_bytes());
    let data = data.min(length);
    let mut copy = |start: u64, bytes: u64| -> std::io::Result<()> {
        reader.seek(SeekFrom::Start(start))?;
        std::io::copy(&mut (&mut reader).take(bytes), &mut HashWriter(hash)).map(|_| ())
    };
    copy(0, data)?;
    if length - data <= BLOCKS * BLOCK {
        return copy(data, length - data);
    }
    let last = length - data - BLOCK;
    (0..BLOCKS).try_for_each(|block| copy(data + (last as u128 * block as u128 / (BLOCKS - 1) as u128) as u64, BLOCK))
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_sha256() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "abc").expect("write");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(file.path()).expect("hash"), (expected.to_string(), 3));
    }

    #[test]
    fn a_fingerprint_tells_models_apart() {
        let folder = tempfile::tempdir().expect("folder");
        let (weights, config) = (folder.path().join("a.safetensors"), folder.path().join("config.json"));
        let print = |name: &str, bytes: usize, changed: usize, text: &str| {
            let head = format!("{{\"{name}\":{{\"dtype\":\"U8\",\"shape\":[{bytes}],\"data_offsets\":[0,{bytes}]}}}}");
            let mut data: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
            data[changed] ^= 1;
            let content = [&(head.len() as u64).to_le_bytes(), head.as_bytes(), &data].concat();
            std::fs::write(&weights, content).expect("write");
            std::fs::write(&config, text).expect("write");
            fingerprint(&[weights.clone(), config.clone()]).expect("fingerprint")
        };
        let mut seen = std::collections::BTreeSet::new();
        for (name, bytes, changed, text) in [
            ("a", 300_000, 0, "x"),
            ("b", 300_000, 0, "x"),
            ("a", 299_999, 0, "x"),
            ("a", 300_000, 1, "x"),
            ("a", 300_000, 299_999, "x"),
            ("a", 300_000, 0, "y"),
            ("a", 1000, 500, "x"),
            ("a", 1000, 501, "x"),
        ] {
            let first = print(name, bytes, changed, text);
            assert_eq!(print(name, bytes, changed, text), first);
            assert!(seen.insert(first), "{name} {bytes} {changed} {text}");
        }
        std::fs::write(&weights, "short").expect("write");
        let refused = fingerprint(&[weights]).map_err(|e| e.to_string());
        assert!(refused.is_err_and(|text| text.contains("a.safetensors: not a safetensors file")));
    }
}
