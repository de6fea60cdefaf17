//! GGUF files (llama.cpp's), whose headers candle reads.
use super::blocks::line;
use super::stored::{Stored, StoredFormat};
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits::GGUF_HEADER;
use crate::system::patience;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use safetensors::Dtype;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// What a file begins with that is one.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Whether a file is named as one.
pub fn is_named_so(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The tensors of a file, which is number `shard`, and where their data begin.
///
/// # Errors
/// It is no GGUF file, is cut short, or has tensors of a type that is not read.
pub(super) fn tensors(file: &Path, shard: usize) -> Result<(HashMap<String, Stored>, u64)> {
    let failed = |problem: String| Error::file(file, problem);
    let opened = patience::open(file).map_err(|e| Error::file(file, e))?;
    let bytes = opened.0.metadata().map_err(|e| Error::file(file, e))?.len();
    let mut reader = BufReader::new(opened);
    if !reader.fill_buf().is_ok_and(|start| start.starts_with(MAGIC)) {
        return Err(failed("not a GGUF file".into()));
    }
    let read = || Content::read(&mut Bounded { inner: reader, place: 0 }).map_err(line);
    let content =
        guarded(read).map_err(|problem: String| failed(format!("not a GGUF file that is read: {problem}")))?;
    let mut found = HashMap::with_capacity(content.tensor_infos.len());
    for (name, info) in content.tensor_infos {
        let wrong = |problem: &str| failed(format!("tensor {name}: {problem}"));
        // Of a tensor whose last dimension does not divide into blocks, the file has another shape.
        let shape = match original_shape(content.metadata.get(&format!("comfy.gguf.orig_shape.{name}"))) {
            Some(shape) => shape,
            None => info.shape.dims().to_vec(),
        };
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size));
        let values = count(&shape).filter(|values| count(info.shape.dims()) == Some(*values));
        let (block, block_bytes) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
        let values = values.ok_or_else(|| wrong("its shapes do not go together"))?;
        let length = { values / block }.checked_mul(block_bytes).filter(|_| values.is_multiple_of(block));
        let length = length.ok_or_else(|| wrong("its values do not divide into blocks"))?;
        let start = content.tensor_data_offset.saturating_add(info.offset);
        if start.saturating_add(length as u64) > bytes {
            return Err(failed(format!("cut short: {bytes} bytes, but tensor {name} ends behind them")));
        }
        let format = match info.ggml_dtype {
            GgmlDType::F32 => StoredFormat::Plain(Dtype::F32),
            GgmlDType::F16 => StoredFormat::Plain(Dtype::F16),
            GgmlDType::BF16 => StoredFormat::Plain(Dtype::BF16),
            quantised => StoredFormat::Blocks(quantised),
        };
        found.insert(name, Stored::run(shard, format, shape, (start, length)));
    }
    Ok((found, content.tensor_data_offset.min(bytes)))
}

/// The shape that city96's converter notes of a tensor which it stores in another.
fn original_shape(value: Option<&Value>) -> Option<Vec<usize>> {
    let Some(Value::Array(sizes)) = value else { return None };
    sizes
        .iter()
        .map(|size| match size {
            Value::I32(size) => usize::try_from(*size).ok(),
            other => other.to_u64().ok().and_then(|size| usize::try_from(size).ok()),
        })
        .collect()
}

/// A reader that ends behind the longest header: counts and lengths in a damaged one may say anything.
struct Bounded<R> {
    inner: R,
    place: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let problem = |problem| std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
        GGUF_HEADER.check(self.place).map_err(problem)?;
        let read = self.inner.read(buffer)?;
        self.place += read as u64;
        Ok(read)
    }
}

impl<R: Seek> Seek for Bounded<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.inner.seek(to)
    }

    /// Seeking, which this does otherwise, empties the buffer.
    fn stream_position(&mut self) -> std::io::Result<u64> {
        self.inner.stream_position()
    }
}
