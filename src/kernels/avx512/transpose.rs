//! A square of values, transposed in registers.
use std::arch::x86_64::*;

/// Values of a register, and registers.
const SIDE: usize = 16;

/// Rows as columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transpose(rows: [__m512; SIDE]) -> [__m512; SIDE] {
    let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    let high = |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    let even = |a, b| _mm512_shuffle_f32x4::<0x88>(a, b);
    let odd = |a, b| _mm512_shuffle_f32x4::<0xdd>(a, b);
    let (mut a, mut b) = (rows, rows);
    for i in (0..SIDE).step_by(2) {
        (a[i], a[i + 1]) = (_mm512_unpacklo_ps(rows[i], rows[i + 1]), _mm512_unpackhi_ps(rows[i], rows[i + 1]));
    }
    for i in (0..SIDE).step_by(4) {
        (b[i], b[i + 1]) = (low(a[i], a[i + 2]), high(a[i], a[i + 2]));
        (b[i + 2], b[i + 3]) = (low(a[i + 1], a[i + 3]), high(a[i + 1], a[i + 3]));
    }
    for i in [0, 1, 2, 3, 8, 9, 10, 11] {
        (a[i], a[i + 4]) = (even(b[i], b[i + 4]), odd(b[i], b[i + 4]));
    }
    for i in 0..8 {
        (b[i], b[i + 8]) = (even(a[i], a[i + 8]), odd(a[i], a[i + 8]));
    }
    b
}
