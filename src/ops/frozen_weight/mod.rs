//! Weights that are not trained: dense, or quantised and made dense a layer at a time.
//!
//! A quantised weight is as large in memory as its blocks are. An operation that multiplies with it has it written out in the
//! type of its arithmetic, forward and backward anew, and lets go of that when the product is done: at no time is more than
//! one layer there in full. What is multiplied with are the dequantised values themselves, so that results and gradients are
//! those of a model with such weights.
mod blocks;
#[cfg(feature = "cuda")]
mod cuda;
mod float8;

use crate::config::Quantization;
use blocks::Blocks;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, bail};
use float8::Float8;
use std::ops::Range;
use std::sync::Arc;

/// A weight `[outer, inner]`, which shares its memory with its clones.
#[derive(Clone)]
pub struct FrozenWeight {
    kept: Kept,
    /// Its type, or that of dense weights beside it.
    dtype: DType,
}

/// How the values are kept.
#[derive(Clone)]
enum Kept {
    Dense(Tensor),
    Blocks(Blocks),
    Float8(Float8),
}

impl From<Tensor> for FrozenWeight {
    fn from(weight: Tensor) -> Self {
        Self { dtype: weight.dtype(), kept: Kept::Dense(weight) }
    }
}

impl FrozenWeight {
    /// Quantises a weight `[outer, inner]`, f32 in the host's memory, for `device`. Where its rows are no whole number of the
    /// format's blocks, [`Quantization::fitting`] says which other format is taken, or that it stays dense, as `dtype`.
    ///
    /// # Errors
    /// The weight is no matrix of f32 in the host's memory; a value is too large for the format; memory on the device is too
    /// small.
    pub fn quantize(weight: &Tensor, format: Quantization, dtype: DType, device: &Device) -> Result<Self> {
        let (_, inner) = weight.dims2()?;
        let Some(format) = format.fitting(inner) else { return Ok(weight.to_dtype(dtype)?.to_device(device)?.into()) };
        let kept = match block_type(format) {
            Some(block) => Kept::Blocks(Blocks::of(Arc::new(blocks::quantize(weight, block, device)?))?),
            None => Kept::Float8(Float8::quantize(weight, device)?),
        };
        Ok(Self { kept, dtype })
    }

    /// A weight that was read quantised; `dtype` is that of dense weights beside it.
    ///
    /// # Errors
    /// It is no matrix.
    pub fn of_blocks(weight: Arc<QTensor>, dtype: DType) -> Result<Self> {
        Ok(Self { kept: Kept::Blocks(Blocks::of(weight)?), dtype })
    }

    /// Some of its rows, in the same memory.
    ///
    /// # Errors
    /// It has no such rows.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        if rows.is_empty() || rows.end > self.dims()[0] {
            bail!("rows {rows:?} of a weight of {:?}", self.dims());
        }
        let kept = match &self.kept {
            Kept::Dense(weight) => Kept::Dense(weight.narrow(0, rows.start, rows.len())?),
            Kept::Blocks(weight) => Kept::Blocks(weight.rows(rows)),
            Kept::Float8(weight) => Kept::Float8(weight.rows(rows)?),
        };
        Ok(Self { kept, dtype: self.dtype })
    }

    /// `[outer, inner]`
    pub fn dims(&self) -> &[usize] {
        match &self.kept {
            Kept::Dense(weight) => weight.dims(),
            Kept::Blocks(weight) => &weight.dims,
            Kept::Float8(weight) => weight.values.dims(),
        }
    }

    /// (outer, inner)
    ///
    /// # Errors
    /// It is no matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self.dims() {
            &[outer, inner] => Ok((outer, inner)),
            dims => bail!("a weight of {dims:?} is no matrix"),
        }
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        match &self.kept {
            Kept::Dense(weight) => weight.device().clone(),
            Kept::Blocks(weight) => weight.all.device(),
            Kept::Float8(weight) => weight.values.device().clone(),
        }
    }

    /// Its type, or that of dense weights beside it.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether it is kept in blocks or 8-bit numbers.
    pub fn is_quantized(&self) -> bool {
        !matches!(self.kept, Kept::Dense(_))
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match &self.kept {
            Kept::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Kept::Blocks(weight) => weight.bytes(),
            Kept::Float8(Float8 { values, scales }) => values.elem_count() + scales.elem_count() * size_of::<f32>(),
        }
    }

    /// All of its values, contiguous, in the type of the arithmetic. Nobody keeps them: they would live as long as the graph.
    ///
    /// # Errors
    /// Memory on the device is too small.
    pub fn in_type(&self, dtype: DType) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(written) = cuda::dequantize(self, dtype)? {
            return Ok(written);
        }
        match &self.kept {
            Kept::Dense(weight) => weight.to_dtype(dtype)?.contiguous(),
            Kept::Blocks(weight) => weight.dequantize()?.to_dtype(dtype),
            Kept::Float8(weight) => weight.dequantize()?.to_dtype(dtype),
        }
    }
}

/// The type of ggml's blocks in a format; none for one without blocks.
pub fn block_type(format: Quantization) -> Option<GgmlDType> {
    match format {
        Quantization::Q8_0 => Some(GgmlDType::Q8_0),
        Quantization::Q6K => Some(GgmlDType::Q6K),
        Quantization::Q4K => Some(GgmlDType::Q4K),
        Quantization::F8 => None,
    }
}

impl Quantization {
    /// The format in which weights of `inner` columns are kept: this one where rows are whole blocks, else `q8_0`, whose
    /// blocks are smaller; none, dense, where they are no whole blocks of that either.
    pub fn fitting(self, inner: usize) -> Option<Self> {
        let fits = |format: &Self| inner.is_multiple_of(block_type(*format).map_or(1, |block| block.block_size()));
        [self, Self::Q8_0].into_iter().find(|format| inner > 0 && fits(format))
    }

    /// Bytes of a weight `[outer, inner]`, which would take `dense` bytes a value without.
    pub fn bytes(self, (outer, inner): (usize, usize), dense: usize) -> usize {
        match self.fitting(inner) {
            None => outer * inner * dense,
            Some(format) => match block_type(format) {
                Some(block) => outer * (inner / block.block_size()) * block.type_size(),
                None => outer * (inner + size_of::<f32>()),
            },
        }
    }
}

#[cfg(test)]
mod tests;
