//! Whether the numbers of a stored tensor are finite, checked while they are read: one NaN among billions of weights
//! would make every loss NaN, and nothing would say where it comes from.
use crate::system::vectors::vectorised;
use candle_core::DType;
use safetensors::Dtype;

/// Numbers that are checked together.
const BLOCK: usize = 4096;

/// Place and value of the first of the numbers `data` (of type `stored`, little-endian) that is not finite when it is
/// kept as `kept`: f16 cannot hold 65 520 and more. None where all are finite, or no floating-point numbers.
pub fn first_not_finite(data: &[u8], stored: Dtype, kept: DType) -> Option<(usize, f64)> {
    // From here on a number rounds to infinity.
    let limit = match kept {
        DType::F16 => 65520.0,
        DType::BF16 => f64::from(f32::from_bits(0x7f7f_8000)),
        DType::F32 => 2f64.powi(128) - 2f64.powi(103),
        _ => f64::INFINITY,
    };
    match stored {
        Dtype::F64 => at_least(data.as_chunks().0, limit.to_bits(), u64::from_le_bytes, f64::from_bits),
        Dtype::F32 => {
            let value = |bits| f64::from(f32::from_bits(bits));
            at_least(data.as_chunks().0, (limit as f32).to_bits(), u32::from_le_bytes, value)
        }
        Dtype::F16 => {
            let value = |bits| f64::from(half::f16::from_bits(bits));
            at_least(data.as_chunks().0, half::f16::from_f64(limit).to_bits(), u16::from_le_bytes, value)
        }
        Dtype::BF16 => {
            let value = |bits| f64::from(half::bf16::from_bits(bits));
            at_least(data.as_chunks().0, half::bf16::from_f64(limit).to_bits(), u16::from_le_bytes, value)
        }
        // It has no infinity, and its largest bit pattern is NaN.
        Dtype::F8_E4M3 => at_least(data.as_chunks().0, 0x7f, u8::from_le_bytes, |_| f64::NAN),
        _ => None,
    }
}

/// The first number whose magnitude, as bits without the sign, is at least `limit`. Of floating-point numbers the larger
/// has the larger bits, infinity and NaN the largest.
fn at_least<const BYTES: usize, Bits: Unsigned>(
    numbers: &[[u8; BYTES]],
    limit: Bits,
    bits: impl Fn([u8; BYTES]) -> Bits + Copy,
    value: impl Fn(Bits) -> f64,
) -> Option<(usize, f64)> {
    let block = vectorised!(numbers.chunks(BLOCK).position(|block| {
        let largest = |most: Bits, number: &[u8; BYTES]| most.max(bits(*number).magnitude());
        block.iter().fold(Bits::default(), largest) >= limit
    }))?;
    let found = numbers.iter().enumerate().skip(block * BLOCK);
    found
        .map(|(place, number)| (place, bits(*number)))
        .find(|(_, bits)| bits.magnitude() >= limit)
        .map(|(place, bits)| (place, value(bits)))
}

/// The bits of a floating-point number.
trait Unsigned: Copy + Ord + Default {
    /// Those of the number without its sign.
    fn magnitude(self) -> Self;
}

macro_rules! unsigned {
    ($($bits:ty)*) => {
        $(impl Unsigned for $bits {
            #[inline(always)]
            fn magnitude(self) -> Self {
                self & (Self::MAX >> 1)
            }
        })*
    };
}
unsigned!(u8 u16 u32 u64);

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of 10 000 numbers, all ones but for these.
    fn bytes<const BYTES: usize>(one: [u8; BYTES], others: &[(usize, [u8; BYTES])]) -> Vec<u8> {
        let mut numbers = [one; 10_000];
        others.iter().for_each(|(place, number)| numbers[*place] = *number);
        numbers.concat()
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_found() {
        use half::{bf16, f16};
        let f32s = |others: &[(usize, f32)]| {
            let others: Vec<_> = others.iter().map(|(place, value)| (*place, value.to_le_bytes())).collect();
            bytes(1f32.to_le_bytes(), &others)
        };
        let found = |others: &[(usize, f32)], kept| first_not_finite(&f32s(others), Dtype::F32, kept);
        assert_eq!(found(&[(5, f32::MAX), (9, f32::MIN), (10, f32::MIN_POSITIVE / 4.0)], DType::F32), None);
        assert_eq!(found(&[(9_999, f32::NEG_INFINITY), (9_998, -1e9)], DType::F32), Some((9_999, f64::NEG_INFINITY)));
        assert!(
            found(&[(4_096, -f32::NAN), (8_000, f32::NAN)], DType::F32).is_some_and(|(at, v)| at == 4096 && v.is_nan())
        );
        assert_eq!(found(&[(7, 65_519.0), (8, -65_520.0)], DType::F16), Some((8, -65_520.0)));
        assert_eq!(found(&[(0, f32::MAX)], DType::BF16), Some((0, f64::from(f32::MAX))));
        assert_eq!(found(&[(0, 3.38e38)], DType::BF16), None);

        let large = bytes(bf16::ONE.to_le_bytes(), &[(3, bf16::from_f32(65_280.0).to_le_bytes())]);
        assert_eq!(first_not_finite(&large, Dtype::BF16, DType::F16), None);
        let large = bytes(bf16::ONE.to_le_bytes(), &[(3, bf16::from_f32(-65_536.0).to_le_bytes())]);
        assert_eq!(first_not_finite(&large, Dtype::BF16, DType::F16), Some((3, -65_536.0)));
        assert_eq!(first_not_finite(&large, Dtype::BF16, DType::F32), None);
        for kept in [DType::F16, DType::BF16, DType::F32] {
            let largest = bytes(f16::ONE.to_le_bytes(), &[(1, f16::MAX.to_le_bytes()), (2, f16::MIN.to_le_bytes())]);
            assert_eq!(first_not_finite(&largest, Dtype::F16, kept), None);
            let infinite = bytes(f16::ONE.to_le_bytes(), &[(4_095, f16::INFINITY.to_le_bytes())]);
            assert_eq!(first_not_finite(&infinite, Dtype::F16, kept), Some((4_095, f64::INFINITY)));
        }
        let wide = bytes(1f64.to_le_bytes(), &[(5, 1e39f64.to_le_bytes())]);
        assert_eq!(first_not_finite(&wide, Dtype::F64, DType::F64), None);
        assert_eq!(first_not_finite(&wide, Dtype::F64, DType::F32), Some((5, 1e39)));
        assert_eq!(first_not_finite(&[0xff; 64], Dtype::I64, DType::I64), None);
        assert!(first_not_finite(&[0x7e, 0xff], Dtype::F8_E4M3, DType::F32).is_some_and(|(at, _)| at == 1));
        assert_eq!(first_not_finite(&[], Dtype::F32, DType::F32), None);
    }
}
