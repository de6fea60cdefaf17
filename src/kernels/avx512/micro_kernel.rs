//! The micro-kernel: some rows times a panel of columns, with all results in registers.
use std::arch::x86_64::*;

/// Rows of a tile of results: with two registers each, two for the panel and one for a row's value, 31 of the 32 that
/// there are.
pub const MR: usize = 14;
/// Columns of a tile, and of a panel: two registers.
pub const NR: usize = 2 * LANES;
/// Values of a register.
pub const LANES: usize = 16;

/// Rows of the left matrix: value `k` of row `i` at `i * row + k * step`.
#[derive(Clone, Copy)]
pub struct Left {
    pub data: *const f32,
    pub row: usize,
    pub step: usize,
}

/// Columns of the right matrix: those of place `k` lie beside each other, from `k * step` on.
#[derive(Clone, Copy)]
pub struct Panel {
    pub data: *const f32,
    /// [`NR`] where the panel is packed.
    pub step: usize,
}

/// Where a tile goes: `out = start + scale · product`.
#[derive(Clone, Copy)]
pub struct OutputTile {
    pub data: *mut f32,
    /// From row to row.
    pub stride: usize,
    /// Columns that there are.
    pub columns: usize,
    /// Values to add, and how far their rows are apart: zero, where all rows have one.
    pub start: Option<(*const f32, usize)>,
    pub scale: f32,
}

/// `rows` ≤ [`MR`] rows of `inner` values times a panel.
///
/// # Safety
/// `left` has as many rows and places, the panel as many places of [`NR`] columns ([`LANES`] where the target has no more),
/// and the target's rows and columns, and those of what it
/// starts from, are inside their memory.
#[target_feature(enable = "avx512f")]
pub unsafe fn tile(rows: usize, inner: usize, left: Left, panel: Panel, target: OutputTile) {
    macro_rules! of {
        ($($rows:literal)*) => {
            match (rows, target.columns > LANES) {
                // SAFETY: the caller's promise.
                $(($rows, true) => unsafe { tile_of::<$rows, 2>(inner, left, panel, target) },)*
                // SAFETY: as above.
                $(($rows, false) => unsafe { tile_of::<$rows, 1>(inner, left, panel, target) },)*
                _ => {}
            }
        };
    }
    of!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// # Safety
/// As [`tile`], for M rows and V registers of columns.
#[target_feature(enable = "avx512f")]
unsafe fn tile_of<const M: usize, const V: usize>(inner: usize, left: Left, panel: Panel, target: OutputTile) {
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    let (mut values, mut places) = (left.data, panel.data);
    // What the results meet after the last step is on its way from memory by then.
    let (met, stride) = target.start.unwrap_or((target.data, target.stride));
    for row in 0..M {
        (0..V).for_each(|v| _mm_prefetch::<_MM_HINT_T0>(met.wrapping_add(row * stride + v * LANES).cast()));
    }
    for _ in 0..inner {
        // SAFETY: places of the panel and of the rows, as the caller says.
        unsafe {
            let right: [__m512; V] = std::array::from_fn(|v| _mm512_loadu_ps(places.add(v * LANES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*values.add(i * left.row));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm512_fmadd_ps(value, right, *sum);
                }
            }
            values = values.add(left.step);
            places = places.add(panel.step);
        }
    }
    let scale = _mm512_set1_ps(target.scale);
    let zero = _mm512_setzero_ps();
    for (i, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            let mask = (1u32 << (target.columns - v * LANES).min(LANES)).wrapping_sub(1) as __mmask16;
            // SAFETY: the mask is of the columns that there are.
            unsafe {
                let start = match target.start {
                    Some((start, stride)) => _mm512_maskz_loadu_ps(mask, start.add(i * stride + v * LANES)),
                    None => zero,
                };
                let out = _mm512_fmadd_ps(*sum, scale, start);
                _mm512_mask_storeu_ps(target.data.add(i * target.stride + v * LANES), mask, out);
            }
        }
    }
}
