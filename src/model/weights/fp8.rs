//! Numbers of eight bits: `e4m3fn` and `e5m2` (torch's `float8_e4m3fn`, `float8_e5m2`), with a scale of the tensor or of each
//! of its rows where the file has one.
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;

/// The value of each bit pattern, where `dtype` is a type of eight bits that is read.
fn values(dtype: Dtype) -> Option<[f32; 256]> {
    let value: fn(u8) -> f32 = match dtype {
        Dtype::F8_E4M3 => e4m3fn,
        // f16 without the last eight bits of its mantissa.
        Dtype::F8_E5M2 => |bits| f16::from_bits(u16::from(bits) << 8).to_f32(),
        _ => return None,
    };
    Some(std::array::from_fn(|bits| value(bits as u8)))
}

/// Four bits of exponent, biased by 7, three of mantissa, no infinity, NaN where all are ones.
fn e4m3fn(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 0x7f) {
        (_, 0x7f) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Whether numbers of this type are read by [`decode`].
pub fn is_fp8(dtype: Dtype) -> bool {
    values(dtype).is_some()
}

/// A tensor of the `shape` that `bytes` are the numbers of, times `scales`, one or one a row, in f32 and rounded to `kept`.
///
/// # Errors
/// There are neither one scale nor as many as rows; a number is not finite, or too large for `kept`: names its place.
pub fn decode(
    bytes: &[u8],
    dtype: Dtype,
    shape: &[usize],
    scales: &[f32],
    kept: DType,
    device: &Device,
) -> Result<Tensor, String> {
    let values = values(dtype).ok_or_else(|| format!("{dtype:?} is no type of eight bits that is read"))?;
    let rows = shape.first().copied().unwrap_or(1);
    if scales.len() != 1 && scales.len() != rows {
        return Err(format!("has {} scales, expected 1 or one for each of its {rows} rows", scales.len()));
    }
    let scales_by_row = |row: usize| if scales.len() == 1 { scales.first() } else { scales.get(row) };
    let row_length = (bytes.len() / rows.max(1)).max(1);
    let each = bytes.chunks(row_length).enumerate().flat_map(|(row, numbers)| {
        let scale = scales_by_row(row).copied().unwrap_or(1.0);
        numbers.iter().map(move |bits| values[usize::from(*bits)] * scale)
    });
    let (tensor, first_bad) = match kept {
        DType::F16 => rounded(each, shape, device, f16::from_f32, f16::is_finite),
        DType::BF16 => rounded(each, shape, device, bf16::from_f32, bf16::is_finite),
        _ => rounded(each, shape, device, |value| value, f32::is_finite),
    }?;
    match first_bad {
        Some((place, value)) if value.is_finite() => {
            Err(format!("value {place} is {value}, too large for {}", kept.as_str()))
        }
        Some((place, value)) => Err(format!("value {place} is {value}, not finite")),
        None => tensor.to_dtype(kept).map_err(|e| e.to_string()),
    }
}

/// The numbers rounded to another type, and the first that is not finite then.
fn rounded<T: candle_core::WithDType>(
    each: impl Iterator<Item = f32>,
    shape: &[usize],
    device: &Device,
    round: fn(f32) -> T,
    is_finite: fn(T) -> bool,
) -> Result<(Tensor, Option<(usize, f32)>), String> {
    let mut bad = None;
    let mut numbers = Vec::with_capacity(shape.iter().product());
    for (place, value) in each.enumerate() {
        let number = round(value);
        if !is_finite(number) && bad.is_none() {
            bad = Some((place, value));
        }
        numbers.push(number);
    }
    Ok((Tensor::from_vec(numbers, shape, device).map_err(|e| e.to_string())?, bad))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_patterns_have_the_values_of_torch() {
        // torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()[[…]], torch 2.15.
        let e4m3 = values(Dtype::F8_E4M3).expect("read");
        for (bits, value) in [
            (0x00, 0.0),
            (0x01, 0.001953125),
            (0x07, 0.013671875),
            (0x08, 0.015625),
            (0x38, 1.0),
            (0x3f, 1.875),
            (0x7e, 448.0),
            (0xb9, -1.125),
            (0xfe, -448.0),
        ] {
            assert_eq!(e4m3[bits], value, "{bits:#x}");
        }
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan() && e4m3[0x80].is_sign_negative());
        let e5m2 = values(Dtype::F8_E5M2).expect("read");
        for (bits, value) in [
            (0x01, 2f32.powi(-16)),
            (0x04, 2f32.powi(-14)),
            (0x3c, 1.0),
            (0x7b, 57344.0),
            (0xc1, -2.5),
            (0x7c, f32::INFINITY),
        ] {
            assert_eq!(e5m2[bits], value, "{bits:#x}");
        }
        assert!(e5m2[0x7d].is_nan() && !is_fp8(Dtype::F8_E8M0));
    }

    #[test]
    fn scales_are_of_the_tensor_or_of_each_row() {
        let decoded = |bytes: &[u8], scales: &[f32], kept| {
            let tensor = decode(bytes, Dtype::F8_E4M3, &[2, 2], scales, kept, &Device::Cpu)?;
            assert_eq!(tensor.dtype(), kept);
            let flat = tensor.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
            flat.map_err(|e| e.to_string())
        };
        let bytes = [0x38, 0xb9, 0x40, 0x7e];
        assert_eq!(decoded(&bytes, &[0.5], DType::F32), Ok(vec![0.5, -0.5625, 1.0, 224.0]));
        assert_eq!(decoded(&bytes, &[3.0, 0.25], DType::BF16), Ok(vec![3.0, -3.375, 0.5, 112.0]));
        assert!(decoded(&bytes, &[1.0; 3], DType::F32).is_err_and(|text| text.contains("3 scales")));
        assert!(decoded(&bytes, &[1e3], DType::F16).is_err_and(|text| text.contains("value 3 is 448000, too large")));
        assert!(decoded(&[0, 0, 0xff, 0], &[1.0], DType::F32).is_err_and(|text| text.contains("value 2 is NaN")));
    }
}
