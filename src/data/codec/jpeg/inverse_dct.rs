//! The accurate integer inverse DCT of libjpeg (`jidctint.c`): columns with 2 extra bits, then rows.
//!
//! Arithmetic wraps; encoders never write coefficients that large.
use std::array::from_fn;
use std::num::Wrapping;

/// Blocks transformed side by side.
pub const LANES: usize = 16;

/// Dequantises and transforms up to [`LANES`] blocks: `[8 · row + column, block]`.
#[inline(always)]
pub fn inverse_dct(blocks: &[[i16; 64]], quantisation: &[u16; 64]) -> [[u8; LANES]; 64] {
    let mut values = [[Wrapping(0i32); LANES]; 64];
    for (lane, block) in blocks.iter().enumerate() {
        for (values, (coefficient, factor)) in values.iter_mut().zip(block.iter().zip(quantisation)) {
            values[lane].0 = i32::from(*coefficient) * i32::from(*factor);
        }
    }
    for column in 0..8 {
        transform(&mut values, from_fn(|index| 8 * index + column), 11);
    }
    for row in 0..8 {
        transform(&mut values, from_fn(|index| 8 * row + index), 18);
    }
    let mut samples = [[0; LANES]; 64];
    for (samples, values) in samples.iter_mut().zip(&values) {
        for (sample, value) in samples.iter_mut().zip(values) {
            // Samples are coded as differences from 128.
            *sample = (value.0.clamp(-128, 127) + 128) as u8;
        }
    }
    samples
}

/// Transforms the values at 8 `places` in all lanes, and drops `bits` fractional bits.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // the same lane of 8 rows
fn transform(values: &mut [[Wrapping<i32>; LANES]; 64], places: [usize; 8], bits: usize) {
    for lane in 0..LANES {
        let output = butterfly(from_fn(|index| values[places[index]][lane]));
        for (place, value) in places.into_iter().zip(output) {
            values[place][lane] = (value + Wrapping(1 << (bits - 1))) >> bits;
        }
    }
}

/// One-dimensional inverse DCT of 8 values, scaled by 2¹³ (Loeffler, Ligtenberg and Moschytz).
#[inline(always)]
fn butterfly(input: [Wrapping<i32>; 8]) -> [Wrapping<i32>; 8] {
    let shared = (input[2] + input[6]) * Wrapping(4433);
    let (even2, even3) = (shared - input[6] * Wrapping(15137), shared + input[2] * Wrapping(6270));
    let (even0, even1) = ((input[0] + input[4]) << 13, (input[0] - input[4]) << 13);
    let even = [even0 + even3, even1 + even2, even1 - even2, even0 - even3];

    let z1 = (input[7] + input[1]) * Wrapping(-7373);
    let z2 = (input[5] + input[3]) * Wrapping(-20995);
    let z5 = (input[7] + input[3] + input[5] + input[1]) * Wrapping(9633);
    let z3 = (input[7] + input[3]) * Wrapping(-16069) + z5;
    let z4 = (input[5] + input[1]) * Wrapping(-3196) + z5;
    let odd = [
        input[1] * Wrapping(12299) + z1 + z4,
        input[3] * Wrapping(25172) + z2 + z3,
        input[5] * Wrapping(16819) + z2 + z4,
        input[7] * Wrapping(2446) + z1 + z3,
    ];
    [
        even[0] + odd[0],
        even[1] + odd[1],
        even[2] + odd[2],
        even[3] + odd[3],
        even[3] - odd[3],
        even[2] - odd[2],
        even[1] - odd[1],
        even[0] - odd[0],
    ]
}
