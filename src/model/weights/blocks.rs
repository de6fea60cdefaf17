//! Tensors in blocks of few bits, each block with its scale (ggml's). Format and arithmetic are candle's.
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;

/// Blocks as candle has them: of one row where a tensor's own rows do not divide into blocks.
pub(super) fn quantised(dtype: GgmlDType, data: &[u8], shape: &[usize], device: &Device) -> Result<QTensor, String> {
    let storage = QStorage::from_data(Cow::Borrowed(data), device, dtype).map_err(line)?;
    let made = match shape.last().is_some_and(|inner| inner.is_multiple_of(dtype.block_size())) {
        true => QTensor::new(storage, shape),
        false => QTensor::new(storage, shape.iter().product::<usize>()),
    };
    made.map_err(line)
}

/// The numbers that blocks stand for, computed in f32 and rounded to `kept`.
///
/// # Errors
/// One is not finite, or too large for `kept`.
pub fn dequantised(blocks: &QTensor, kept: DType, device: &Device) -> Result<Tensor, String> {
    let round = || {
        let exact = blocks.dequantize(device)?;
        let rounded = exact.to_dtype(kept)?;
        // NaN and infinity stay in a sum; numbers that blocks can hold are far from making one. f16 alone has a smaller range.
        let sum = if kept == DType::F16 { rounded.to_dtype(DType::F32)?.sum_all()? } else { exact.sum_all()? };
        Ok::<_, candle_core::Error>((rounded, sum.to_scalar::<f32>()?))
    };
    match round().map_err(line)? {
        (numbers, sum) if sum.is_finite() => Ok(numbers),
        _ => Err(format!("a value is not finite, or too large for {}", kept.as_str())),
    }
}

/// What candle says, without the trace that may follow.
pub(super) fn line(problem: candle_core::Error) -> String {
    problem.to_string().lines().next().unwrap_or_default().to_string()
}
