//! A tensor in a file: where its bytes lie, how its numbers are stored, and how they are read.
use super::finite::first_not_finite;
use super::{blocks, fp8};
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits;
use crate::system::patience::patiently;
use crate::system::platform::read_exact_at;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{TensorInfo, TensorView};
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

/// Bytes that are read at a time.
const PART: usize = 1 << 20;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredFormat {
    /// One after the other.
    Plain(Dtype),
    /// In blocks of ggml, each with its scale.
    Blocks(GgmlDType),
    /// Not at all: the identity matrix.
    Identity,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub shard: usize,
    pub format: StoredFormat,
    pub shape: Vec<usize>,
    /// Its bytes: where each run of them begins in the file, and how many they are.
    runs: Vec<(u64, usize)>,
    /// What its numbers are multiplied with: one number, or one for each row.
    pub scale: Option<Box<Stored>>,
}

impl Stored {
    /// A tensor of a safetensors file whose data begin at byte `data`.
    pub fn plain(shard: usize, info: &TensorInfo, data: u64) -> Self {
        let (first, end) = info.data_offsets;
        Self::run(shard, StoredFormat::Plain(info.dtype), info.shape.clone(), (data + first as u64, end - first))
    }

    /// A tensor whose bytes are one run.
    pub fn run(shard: usize, format: StoredFormat, shape: Vec<usize>, run: (u64, usize)) -> Self {
        Self { shard, format, shape, runs: vec![run], scale: None }
    }

    /// The identity matrix of `size` rows.
    pub fn identity(size: usize) -> Self {
        Self { shard: 0, format: StoredFormat::Identity, shape: vec![size, size], runs: vec![], scale: None }
    }

    /// Rows, the first dimension.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(|(_, bytes)| bytes).sum()
    }

    /// These rows alone: no other bytes are read.
    ///
    /// # Errors
    /// The tensor has no such rows, or they do not lie by themselves.
    pub fn only_rows(&self, rows: Range<usize>) -> Result<Self, String> {
        let (all, bytes) = (self.rows(), self.bytes());
        let lies_by_rows = match self.format {
            StoredFormat::Plain(_) => true,
            StoredFormat::Blocks(dtype) => {
                self.shape.last().is_some_and(|inner| inner.is_multiple_of(dtype.block_size()))
            }
            StoredFormat::Identity => false,
        };
        let (true, [(first, _)]) =
            (lies_by_rows && rows.end <= all && bytes.is_multiple_of(all.max(1)), &self.runs[..])
        else {
            return Err(format!("rows {rows:?} of its {all} do not lie by themselves"));
        };
        let row = bytes / all.max(1);
        let mut shape = self.shape.clone();
        shape.iter_mut().take(1).for_each(|count| *count = rows.len());
        let scale = match &self.scale {
            Some(scale) if scale.shape.iter().product::<usize>() == all && all > 1 => {
                Some(Box::new(scale.only_rows(rows.clone())?))
            }
            scale => scale.clone(),
        };
        Ok(Self { shape, runs: vec![(first + (rows.start * row) as u64, rows.len() * row)], scale, ..self.clone() })
    }

    /// The second half of its rows before the first.
    ///
    /// # Errors
    /// Its rows are no two halves that lie by themselves.
    pub fn halves_swapped(&self) -> Result<Self, String> {
        let rows = self.rows();
        let scaled_by_row = self.scale.as_ref().is_some_and(|scale| scale.shape.iter().product::<usize>() > 1);
        if !rows.is_multiple_of(2) || scaled_by_row {
            return Err(format!("its {rows} rows are no two halves"));
        }
        let (first, second) = (self.only_rows(0..rows / 2)?, self.only_rows(rows / 2..rows)?);
        Ok(Self { runs: [second.runs, first.runs].concat(), ..self.clone() })
    }
}

/// A file of tensors.
pub(super) struct Shard {
    pub path: PathBuf,
    pub file: File,
}

impl Shard {
    /// Reads a tensor, as `kept` or as it is stored (what is stored in blocks or eight bits as f32). `scale` has the numbers
    /// of its scale.
    ///
    /// # Errors
    /// The file cannot be read, or a number is not finite; the tensor and the number are named.
    pub fn read(
        &self,
        name: &str,
        stored: &Stored,
        scale: Option<&[f32]>,
        kept: Option<DType>,
        device: &Device,
    ) -> Result<Tensor> {
        let failed = |problem: String| Error::file(&self.path, format!("tensor {name}: {problem}"));
        match stored.format {
            StoredFormat::Identity => Ok(Tensor::eye(stored.rows(), kept.unwrap_or(DType::F32), device)?),
            StoredFormat::Blocks(_) => {
                let quantised = self.quantised(name, stored, device)?;
                let kept = kept.unwrap_or(DType::F32);
                let numbers = guarded(|| blocks::dequantised(&quantised, kept, device)).map_err(failed)?;
                Ok(numbers.reshape(&stored.shape[..])?)
            }
            StoredFormat::Plain(dtype) if fp8::is_fp8(dtype) => {
                let data = self.bytes(name, stored, |_, _| Ok(()))?;
                let (scale, kept) = (scale.unwrap_or(&[1.0]), kept.unwrap_or(DType::F32));
                fp8::decode(&data, dtype, &stored.shape, scale, kept, device).map_err(failed)
            }
            StoredFormat::Plain(dtype) => {
                if kept.is_some() && is_integer(dtype) {
                    let problem = "whole numbers are no weights that are read; quantised ones are fp8 or GGUF";
                    return Err(failed(format!("is stored as {dtype:?}: {problem}")));
                }
                let data = self.bytes(name, stored, |first, part| {
                    let Some((place, value)) = first_not_finite(part, dtype, kept.unwrap_or(DType::F64)) else {
                        return Ok(());
                    };
                    let place = first * 8 / dtype.bitsize() + place;
                    Err(match kept {
                        Some(kept) if value.is_finite() => {
                            format!("value {place} is {value}, too large for {}", kept.as_str())
                        }
                        _ => format!("value {place} is {value}, not finite"),
                    })
                })?;
                let load = || {
                    let view = TensorView::new(dtype, stored.shape.clone(), &data).map_err(|e| e.to_string())?;
                    candle_core::safetensors::Load::load(&view, device).map_err(|e| e.to_string())
                };
                let tensor = guarded(load).map_err(failed)?;
                let tensor = match scale {
                    Some(scale) => scaled(&tensor, scale).map_err(|e| failed(e.to_string()))?,
                    None => tensor,
                };
                match kept {
                    Some(kept) => tensor.to_dtype(kept).map_err(|e| failed(e.to_string())),
                    None => Ok(tensor),
                }
            }
        }
    }

    /// A tensor that is stored in blocks, as it is.
    ///
    /// # Errors
    /// The file cannot be read; the tensor is not stored so.
    pub fn quantised(&self, name: &str, stored: &Stored, device: &Device) -> Result<QTensor> {
        let failed = |problem: String| Error::file(&self.path, format!("tensor {name}: {problem}"));
        let StoredFormat::Blocks(dtype) = stored.format else {
            return Err(failed("is not stored in blocks".into()));
        };
        let data = self.bytes(name, stored, |_, _| Ok(()))?;
        guarded(|| blocks::quantised(dtype, &data, &stored.shape, device)).map_err(failed)
    }

    /// The bytes of a tensor. `check` looks at each part that was read, given the place of its first byte, while the
    /// processor still has it at hand.
    fn bytes(
        &self,
        name: &str,
        stored: &Stored,
        check: impl Fn(usize, &[u8]) -> Result<(), String>,
    ) -> Result<Vec<u8>> {
        let failed = |problem: String| Error::file(&self.path, format!("tensor {name}: {problem}"));
        let mut data = limits::buffer(stored.bytes()).map_err(|e| failed(e.to_string()))?;
        let mut first = 0;
        for (start, length) in &stored.runs {
            for (index, part) in data[first..first + length].chunks_mut(PART).enumerate() {
                let offset = index * PART;
                let read = patiently(|| read_exact_at(&self.file, part, start + offset as u64));
                read.map_err(|e| failed(e.to_string()))?;
                check(first + offset, part).map_err(failed)?;
            }
            first += length;
        }
        Ok(data)
    }
}

/// `tensor` in f32 times one number, or one a row.
fn scaled(tensor: &Tensor, scale: &[f32]) -> candle_core::Result<Tensor> {
    let mut shape = vec![1; tensor.rank()];
    if let (Some(rows), true) = (shape.first_mut(), scale.len() > 1) {
        *rows = scale.len();
    }
    let scale = Tensor::new(scale, tensor.device())?.reshape(shape)?;
    tensor.to_dtype(DType::F32)?.broadcast_mul(&scale)
}

fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    [BOOL, I8, I16, I32, I64, U8, U16, U32, U64].contains(&dtype)
}
