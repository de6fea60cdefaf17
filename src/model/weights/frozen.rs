//! Weights of frozen layers, quantised where that was asked for.
use super::Weights;
use super::stored::{Stored, StoredFormat};
use crate::config::{Choice, Quantization};
use crate::ops::{FrozenWeight, block_type};
use crate::system::error::{Error, Result};
use candle_core::{DType, Device};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Weights {
    /// Has [`Self::frozen`] quantise what it reads.
    pub fn quantized(self, quantize: Option<Quantization>) -> Self {
        Self { quantize, ..self }
    }

    /// The weight `name` of a layer of this shape, (outer, inner): in the blocks that it is stored in, unless another format
    /// was asked for; quantised where that was, in which case memory holds the one tensor in full for a moment.
    ///
    /// # Errors
    /// As [`Self::get`]; a number is too large for the format.
    pub fn frozen(&self, name: &str, shape: (usize, usize)) -> Result<FrozenWeight> {
        let stored = self.tensors.get(name).map(|stored| (&stored.format, &stored.shape));
        if let Some((StoredFormat::Blocks(blocks), dims)) = stored
            && dims[..] == [shape.0, shape.1]
            && self.quantize.is_none_or(|format| block_type(format) == Some(*blocks))
            && let Some(weight) = self.stored_quantised(name)?
        {
            return Ok(FrozenWeight::of_blocks(Arc::new(weight), self.dtype)?);
        }
        let Some(format) = self.quantize else { return Ok(self.get(name, shape)?.into()) };
        // From what the file has, not from that rounded to `dtype`; in the host's memory, where blocks are made.
        let weight = self.get_as(name, &shape.into(), DType::F32, &Device::Cpu)?;
        let taken = format.fitting(shape.1);
        if taken != Some(format) && !self.said_other.swap(true, Ordering::Relaxed) {
            let (path, format) = (self.path.display(), format.name());
            let taken = taken.map_or(self.dtype.as_str(), |taken| taken.name());
            tracing::warn!(
                "{path}: rows of {} weights are no whole blocks of {format}; such are kept as {taken}",
                shape.1
            );
        }
        FrozenWeight::quantize(&weight, format, self.dtype, &self.device)
            .map_err(|e| Error::file(self.file_of(name), format!("tensor {name}: {e}")))
    }

    /// Bytes that all tensors take in memory where the weights of layers, whose names `is_layer` tells, are quantised as
    /// was asked for, or as they are stored.
    pub fn bytes(&self, is_layer: impl Fn(&str) -> bool) -> u64 {
        let value = self.dtype.size_in_bytes();
        let of = |(name, stored): (&String, &Stored)| match (self.quantize, &stored.shape[..], &stored.format) {
            (None, &[_, _], StoredFormat::Blocks(_)) if name.ends_with(".weight") && is_layer(name) => stored.bytes(),
            (Some(format), &[outer, inner], _) if name.ends_with(".weight") && is_layer(name) => {
                format.bytes((outer, inner), value)
            }
            (_, shape, _) => shape.iter().product::<usize>() * value,
        };
        self.tensors.iter().map(|tensor| of(tensor) as u64).sum()
    }
}
