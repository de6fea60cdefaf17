//! Weights in ggml's blocks. In the host's memory candle's functions quantise and dequantise them: here on all threads, a row
//! at a time.
use crate::kernels::cpu::new_rows;
use crate::kernels::memory::Values;
use candle_core::quantized::k_quants::*;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Evaluates an expression with a name for the type of blocks.
macro_rules! with_blocks {
    ($dtype:expr, |$Block:ident| $work:expr) => {{
        macro_rules! of {
            ($type:ty) => {{
                type $Block = $type;
                $work
            }};
        }
        match $dtype {
            GgmlDType::F32 => of!(f32),
            GgmlDType::F16 => of!(f16),
            GgmlDType::BF16 => of!(bf16),
            GgmlDType::Q4_0 => of!(BlockQ4_0),
            GgmlDType::Q4_1 => of!(BlockQ4_1),
            GgmlDType::Q5_0 => of!(BlockQ5_0),
            GgmlDType::Q5_1 => of!(BlockQ5_1),
            GgmlDType::Q8_0 => of!(BlockQ8_0),
            GgmlDType::Q8_1 => of!(BlockQ8_1),
            GgmlDType::Q2K => of!(BlockQ2K),
            GgmlDType::Q3K => of!(BlockQ3K),
            GgmlDType::Q4K => of!(BlockQ4K),
            GgmlDType::Q5K => of!(BlockQ5K),
            GgmlDType::Q6K => of!(BlockQ6K),
            GgmlDType::Q8K => of!(BlockQ8K),
        }
    }};
}

/// Quantises `[outer, inner]`, f32 in the host's memory, whose rows are whole blocks, for `device`.
pub fn quantize(weight: &Tensor, dtype: GgmlDType, device: &Device) -> Result<QTensor> {
    let ((outer, inner), weight) = (weight.dims2()?, weight.contiguous()?);
    let values = Values::of(&weight)?;
    // A block's step, which is below its largest value, is an f16.
    let largest = f16::MAX.to_f32();
    if let Some(value) = values.iter().find(|value| value.abs() > largest) {
        bail!("value {value} is too large for {dtype:?}, which takes {largest} at most");
    }
    let storage = with_blocks!(dtype, |Block| {
        let mut blocks = vec![Block::zeros(); outer * inner / Block::BLCK_SIZE];
        let rows = blocks.par_chunks_exact_mut(inner / Block::BLCK_SIZE).zip(values.par_chunks_exact(inner));
        rows.for_each(|(blocks, row)| Block::from_float(row, blocks));
        QStorage::Cpu(Box::new(blocks))
    });
    let quantized = QTensor::new(storage, (outer, inner))?;
    if device.is_cpu() {
        return Ok(quantized);
    }
    QTensor::new(QStorage::from_data(Cow::Borrowed(&quantized.data()?), device, dtype)?, (outer, inner))
}

/// Some rows of a weight in blocks, all of whose rows are in one memory.
#[derive(Clone)]
pub struct Blocks {
    pub all: Arc<QTensor>,
    first: usize,
    /// (rows, columns)
    pub dims: [usize; 2],
}

impl Blocks {
    /// All rows of a matrix.
    pub fn of(all: Arc<QTensor>) -> Result<Self> {
        let (outer, inner) = all.shape().dims2()?;
        Ok(Self { all, first: 0, dims: [outer, inner] })
    }

    pub fn bytes(&self) -> usize {
        self.bytes_of(self.dims[0])
    }

    /// Bytes before the first row.
    pub fn offset(&self) -> usize {
        self.bytes_of(self.first)
    }

    fn bytes_of(&self, rows: usize) -> usize {
        rows * self.dims[1] / self.all.dtype().block_size() * self.all.dtype().type_size()
    }

    pub fn rows(&self, rows: Range<usize>) -> Self {
        Self { all: self.all.clone(), first: self.first + rows.start, dims: [rows.len(), self.dims[1]] }
    }

    /// Its values, f32.
    pub fn dequantize(&self) -> Result<Tensor> {
        let (device, [outer, inner]) = (self.all.device(), self.dims);
        if !device.is_cpu() {
            return self.all.dequantize(&device)?.narrow(0, self.first, outer);
        }
        let all = self.all.data()?;
        let data = &all[self.offset()..][..self.bytes()];
        let values = with_blocks!(self.all.dtype(), |Block| {
            // SAFETY: blocks of this type are plain numbers, of which any bits are some.
            let (before, blocks, after) = unsafe { data.align_to::<Block>() };
            if !before.is_empty() || !after.is_empty() {
                bail!("blocks of {:?} are not aligned", self.all.dtype());
            }
            let in_row = inner / Block::BLCK_SIZE;
            new_rows!(outer * inner, inner, |row, values| {
                Block::to_float(&blocks[row * in_row..][..in_row], values);
            })
        });
        Tensor::from_vec(values, (outer, inner), &Device::Cpu)
    }
}
