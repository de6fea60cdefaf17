//! Safetensors files as bytes: the header read and checked, and files written whole or not at all.
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits::{self, TENSOR_HEADER};
use crate::system::patience;
use crate::system::whole_file::write_atomically;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

/// What stands before the data of a safetensors file.
pub struct SafetensorsHeader {
    /// Name to type, shape and byte range, counted from `data`.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// `__metadata__`: strings by name.
    pub metadata: BTreeMap<String, String>,
    /// Where the data begins.
    pub data: u64,
    /// Length of the whole file in bytes.
    pub bytes: u64,
}

/// Reads and checks the header of a safetensors file, its length against the file's included.
pub fn header(file: &Path) -> Result<SafetensorsHeader> {
    let mut reader = patience::open(file).map_err(|e| Error::file(file, e))?;
    let bytes = reader.0.metadata().map_err(|e| Error::file(file, e))?.len();
    read_header(&mut reader, bytes).map_err(|problem| Error::file(file, problem))
}

/// As [`header`], from what the file of so many `bytes` begins with.
///
/// # Errors
/// Says what is wrong with it.
pub fn read_header(reader: &mut impl Read, bytes: u64) -> Result<SafetensorsHeader, String> {
    let mut length = [0u8; 8];
    reader.read_exact(&mut length).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "not a safetensors file: shorter than 8 bytes".to_string(),
        _ => e.to_string(),
    })?;
    let length = u64::from_le_bytes(length);
    if length > bytes.saturating_sub(8) {
        return Err(format!("not a safetensors file, or cut short: header of {length} bytes in {bytes}"));
    }
    TENSOR_HEADER.check(length)?;
    let mut text = limits::buffer(length as usize).map_err(|e| e.to_string())?;
    reader.read_exact(&mut text).map_err(|e| e.to_string())?;
    let parsed = guarded(|| serde_json::from_slice::<Metadata>(&text).map_err(|e| e.to_string()));
    let metadata = parsed.map_err(|problem: String| format!("not a safetensors header: {problem}"))?;
    let expected = (8 + length).saturating_add(metadata.data_len() as u64);
    if expected != bytes {
        return Err(format!("cut short or damaged: {bytes} bytes, its header says {expected}"));
    }
    Ok(SafetensorsHeader {
        tensors: metadata.tensors().into_iter().map(|(n, i)| (n, i.clone())).collect(),
        metadata: metadata.metadata().clone().unwrap_or_default().into_iter().collect(),
        data: 8 + length,
        bytes,
    })
}

/// Writes a safetensors file of tensors of these names, types and shapes; `data` writes their bytes, little-endian, in
/// the same order. The same content gives the same bytes; the file is whole or absent.
pub fn write(
    file: &Path,
    tensors: Vec<(String, Dtype, Vec<usize>)>,
    metadata: &BTreeMap<String, String>,
    data: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    // safetensors' own writer takes its metadata from a HashMap, so its bytes differ from run to run.
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, dtype, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = TensorInfo { dtype, shape, data_offsets: (offset, end) };
        header.insert(name, serde_json::json!(info));
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| Error::file(file, e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(file, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        data(out)
    })
}
