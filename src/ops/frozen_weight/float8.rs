//! 8-bit numbers of 4 bits exponent and 3 bits mantissa (E4M3), with one scale a row: the largest value of a row becomes 448,
//! the largest such number. Rows differ more from each other in size than values within a row; a scale for a whole weight
//! would leave few bits to its small rows.
use crate::kernels::cpu::new_rows;
use crate::kernels::memory::Values;
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// The largest number.
const LARGEST: f32 = 448.0;
/// Bits of a number moved to the places of an f32's are the number times 2^-120.
const EXPONENTS_APART: f32 = f32::from_bits((127 + 120) << 23);

/// A weight.
#[derive(Clone)]
pub struct Float8 {
    /// `[outer, inner]`
    pub values: Tensor,
    /// f32 `[outer, 1]`
    pub scales: Tensor,
}

impl Float8 {
    /// Of a weight `[outer, inner]` of f32 in the host's memory, for `device`.
    pub fn quantize(weight: &Tensor, device: &Device) -> Result<Self> {
        let ((outer, inner), weight) = (weight.dims2()?, weight.contiguous()?);
        let rows = Values::of(&weight)?;
        let quantized = rows.par_chunks_exact(inner).map(|row| {
            let largest = row.iter().fold(0f32, |most, value| most.max(value.abs()));
            let scale = largest / LARGEST;
            let scaled = row.iter().map(|value| match scale {
                0.0 => 0.0,
                _ => (value / scale).clamp(-LARGEST, LARGEST),
            });
            let row = Tensor::from_vec(scaled.collect(), (1, inner), &Device::Cpu)?;
            Ok((row.to_dtype(DType::F8E4M3)?, scale))
        });
        let (values, scales): (Vec<Tensor>, Vec<f32>) = quantized.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok(Self {
            values: Tensor::cat(&values, 0)?.to_device(device)?,
            scales: Tensor::from_vec(scales, (outer, 1), &Device::Cpu)?.to_device(device)?,
        })
    }

    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        let of = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
        Ok(Self { values: of(&self.values)?, scales: of(&self.scales)? })
    }

    /// Its values, f32.
    pub fn dequantize(&self) -> Result<Tensor> {
        if !self.values.device().is_cpu() {
            return self.values.to_dtype(DType::F32)?.broadcast_mul(&self.scales);
        }
        let (outer, inner) = self.values.dims2()?;
        let scales = Values::of(&self.scales)?;
        let (storage, layout) = self.values.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F8E4M3(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            bail!("8-bit numbers are not contiguous in the host's memory")
        };
        let values = &values[start..end];
        let written = new_rows!(outer * inner, inner, |row, out| {
            let scale = scales[row];
            for (out, value) in out.iter_mut().zip(&values[row * inner..][..inner]) {
                let bits = u32::from(value.to_bits());
                let moved = f32::from_bits((bits & 0x80) << 24 | (bits & 0x7f) << 20);
                *out = moved * EXPONENTS_APART * scale;
            }
        });
        Tensor::from_vec(written, (outer, inner), &Device::Cpu)
    }
}
