//! The slow, exact inverse transform of libjpeg (`jidctint.c`): columns with 2 extra bits, then rows.
//!
//! Sums of coefficients that no encoder writes wrap around.
use std::ops::{Add, Mul, Sub};

/// From a block's coefficients to its samples, row after row.
#[inline(always)]
pub fn inverse_dct(block: &[i16; 64], quantisation: &[u16; 64]) -> [[u8; 8]; 8] {
    if block[1..] == [0; 63] {
        let level = i32::from(block[0]) * i32::from(quantisation[0]);
        return [[clip((level + 4) >> 3); 8]; 8];
    }
    let mut rows = [Lanes([0; 8]); 8];
    for (row, (values, factors)) in rows.iter_mut().zip(block.chunks_exact(8).zip(quantisation.chunks_exact(8))) {
        for (lane, (value, factor)) in row.0.iter_mut().zip(values.iter().zip(factors)) {
            *lane = i32::from(*value) * i32::from(*factor);
        }
    }
    let columns = rounded(butterfly(rows), 11);
    let rows = rounded(butterfly(transposed(columns)), 18);
    let mut samples = [[0; 8]; 8];
    for (samples, values) in samples.iter_mut().zip(transposed(rows)) {
        for (sample, value) in samples.iter_mut().zip(values.0) {
            *sample = clip(value);
        }
    }
    samples
}

/// A sample, which is coded as its difference from 128.
#[inline(always)]
fn clip(value: i32) -> u8 {
    (value.clamp(-128, 127) + 128) as u8
}

/// One-dimensional inverse transforms of 8 values in each lane, times 2¹³ (Loeffler, Ligtenberg and Moschytz).
#[inline(always)]
fn butterfly(input: [Lanes; 8]) -> [Lanes; 8] {
    let shared = (input[2] + input[6]) * 4433;
    let (even2, even3) = (shared - input[6] * 15137, shared + input[2] * 6270);
    let (even0, even1) = ((input[0] + input[4]) * (1 << 13), (input[0] - input[4]) * (1 << 13));
    let even = [even0 + even3, even1 + even2, even1 - even2, even0 - even3];

    let z1 = (input[7] + input[1]) * -7373;
    let z2 = (input[5] + input[3]) * -20995;
    let z5 = (input[7] + input[3] + input[5] + input[1]) * 9633;
    let z3 = (input[7] + input[3]) * -16069 + z5;
    let z4 = (input[5] + input[1]) * -3196 + z5;
    let odd =
        [input[1] * 12299 + z1 + z4, input[3] * 25172 + z2 + z3, input[5] * 16819 + z2 + z4, input[7] * 2446 + z1 + z3];
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

/// Eight numbers that are computed side by side.
#[derive(Clone, Copy)]
struct Lanes([i32; 8]);

impl Add for Lanes {
    type Output = Self;

    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for (value, other) in self.0.iter_mut().zip(other.0) {
            *value = value.wrapping_add(other);
        }
        self
    }
}

impl Sub for Lanes {
    type Output = Self;

    #[inline(always)]
    fn sub(mut self, other: Self) -> Self {
        for (value, other) in self.0.iter_mut().zip(other.0) {
            *value = value.wrapping_sub(other);
        }
        self
    }
}

impl Mul<i32> for Lanes {
    type Output = Self;

    #[inline(always)]
    fn mul(mut self, factor: i32) -> Self {
        for value in &mut self.0 {
            *value = value.wrapping_mul(factor);
        }
        self
    }
}

/// Cuts `bits` off.
#[inline(always)]
fn rounded(mut rows: [Lanes; 8], bits: u32) -> [Lanes; 8] {
    for row in &mut rows {
        for value in &mut row.0 {
            *value = value.wrapping_add(1 << (bits - 1)) >> bits;
        }
    }
    rows
}

#[inline(always)]
fn transposed(rows: [Lanes; 8]) -> [Lanes; 8] {
    let mut columns = rows;
    for (row, values) in rows.iter().enumerate() {
        for (column, value) in columns.iter_mut().zip(values.0) {
            column.0[row] = value;
        }
    }
    columns
}
