//! Writing matrices out in the order in which the micro-kernel reads them.
use super::micro_kernel::{LANES, Left, MR, NR, Panel};
use super::transpose;
use crate::kernels::matrix::{Threads, View};
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Values of a cache line, and aligned as one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// How far ahead columns are asked for: too many lie beside each other for the processor to see that each goes on.
const AHEAD: usize = 4 * LANES;

/// Lines of a panel's place.
const WIDE: usize = NR / LANES;

/// Lines that are written before they are read.
type Lines = Vec<MaybeUninit<Line>>;

/// Makes room for so many lines, with any values.
fn make_room(lines: &mut Lines, count: usize) {
    lines.clear();
    lines.reserve(count);
    // SAFETY: there is room for so many, and they may have any values.
    unsafe { lines.set_len(count) };
}

/// Columns of a right matrix in micro-panels `[inner, NR]`, the last one with zeros where there are no columns.
#[derive(Default)]
pub struct Panels {
    lines: Lines,
    pub inner: usize,
}

impl Panels {
    /// Packs these places and columns of a matrix one of whose strides is 1.
    ///
    /// # Safety
    /// They are inside the view's slice; the instructions are available.
    pub unsafe fn pack(&mut self, view: View, inner: Range<usize>, columns: Range<usize>, threads: Threads) {
        self.inner = inner.len();
        let size = self.inner * WIDE;
        make_room(&mut self.lines, columns.len().div_ceil(NR) * size);
        let pack = |(number, lines): (usize, &mut [MaybeUninit<Line>])| {
            let first = columns.start + number * NR;
            // SAFETY: the caller's promise.
            unsafe { pack_panel(lines, view, inner.start, first..columns.end.min(first + NR)) };
        };
        match threads {
            Threads::One => self.lines.chunks_exact_mut(size).enumerate().for_each(pack),
            Threads::All => self.lines.par_chunks_exact_mut(size).enumerate().for_each(pack),
        }
    }

    pub fn count(&self) -> usize {
        self.lines.len() / (self.inner * WIDE)
    }

    /// The panels from step of K `start` on.
    pub fn iter(&self, start: usize) -> impl Iterator<Item = Panel> + Clone {
        let panels = self.lines.chunks_exact(self.inner * WIDE);
        panels.map(move |panel| Panel { data: panel[start * WIDE..].as_ptr().cast(), step: NR })
    }
}

/// Writes at most [`NR`] columns of a view, from step of K `start` on, to the lines of a panel, and zeros for the others.
///
/// # Safety
/// The panel's steps and the columns are inside the view's slice; one of its strides is 1.
#[target_feature(enable = "avx512f")]
unsafe fn pack_panel(lines: &mut [MaybeUninit<Line>], view: View, start: usize, columns: Range<usize>) {
    let from = view.data.as_ptr().wrapping_add(start * view.row_stride + columns.start * view.column_stride);
    // SAFETY: the caller's promise.
    unsafe {
        match view.column_stride {
            1 => pack_rows(lines, from, view.row_stride, columns.len()),
            stride => pack_columns(lines, from, stride, columns.len()),
        }
    }
}

/// Columns that lie beside each other.
///
/// # Safety
/// Every place has as many columns.
#[target_feature(enable = "avx512f")]
unsafe fn pack_rows(lines: &mut [MaybeUninit<Line>], from: *const f32, stride: usize, columns: usize) {
    let masks: [__mmask16; WIDE] = std::array::from_fn(|v| mask(columns.saturating_sub(v * LANES)));
    for (place, lines) in lines.chunks_exact_mut(WIDE).enumerate() {
        for (v, line) in lines.iter_mut().enumerate() {
            // SAFETY: the mask is of the columns that there are.
            unsafe {
                let values = _mm512_maskz_loadu_ps(masks[v], from.wrapping_add(place * stride + v * LANES));
                _mm512_store_ps(line.as_mut_ptr().cast::<f32>(), values);
            }
        }
    }
}

/// Columns each of which lies in one piece, `stride` apart.
///
/// # Safety
/// Every column has as many places.
#[target_feature(enable = "avx512f")]
unsafe fn pack_columns(lines: &mut [MaybeUninit<Line>], from: *const f32, stride: usize, columns: usize) {
    let inner = lines.len() / WIDE;
    for place in (0..inner).step_by(LANES) {
        let in_places = mask(inner - place);
        for v in 0..WIDE {
            let square: [__m512; LANES] = std::array::from_fn(|i| {
                let column = v * LANES + i;
                let mask = if column < columns { in_places } else { 0 };
                _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(column * stride + place + AHEAD).cast());
                // SAFETY: the mask is of the places that there are.
                unsafe { _mm512_maskz_loadu_ps(mask, from.wrapping_add(column * stride + place)) }
            });
            for (values, lines) in transpose(square).iter().zip(lines[place * WIDE..].chunks_exact_mut(WIDE)) {
                // SAFETY: a line has room for them.
                unsafe { _mm512_store_ps(lines[v].as_mut_ptr().cast::<f32>(), *values) };
            }
        }
    }
}

/// The first `count` lanes.
fn mask(count: usize) -> __mmask16 {
    (1u32 << count.min(LANES)).wrapping_sub(1) as __mmask16
}

/// Lines from row to row for `inner` values: an odd number, so that rows of a group lie in different sets of the cache.
pub fn row_lines(inner: usize) -> usize {
    inner.div_ceil(LANES) | 1
}

/// Lines that lie so far apart, or a multiple of it, share a set of a core's first cache, which has room for eight.
const SETS: usize = 64;

/// At most [`MR`] rows of a left matrix, as the micro-kernel can read them.
#[derive(Default)]
pub struct RowGroup {
    lines: Lines,
}

impl RowGroup {
    /// These rows and places of a matrix one of whose strides is 1: where they lie, or copied where they would be in each
    /// other's way.
    ///
    /// # Safety
    /// They are inside the view's slice; at most [`MR`] rows.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn of(&mut self, view: View, rows: Range<usize>, inner: Range<usize>) -> Left {
        let from = view.data.as_ptr().wrapping_add(rows.start * view.row_stride + inner.start * view.column_stride);
        if view.column_stride != 1 {
            // SAFETY: the caller's promise.
            return unsafe { self.copy_places(from, view.column_stride, rows.len(), inner.len()) };
        }
        if !view.row_stride.is_multiple_of(SETS * LANES) {
            return Left { data: from, row: view.row_stride, step: 1 };
        }
        let row = row_lines(inner.len()) * LANES;
        make_room(&mut self.lines, MR * row_lines(inner.len()));
        let to = self.lines.as_mut_ptr().cast::<f32>();
        for i in 0..rows.len() {
            // SAFETY: the caller's promise; there is room for so many rows.
            unsafe { to.add(i * row).copy_from_nonoverlapping(from.add(i * view.row_stride), inner.len()) };
        }
        Left { data: to, row, step: 1 }
    }

    /// Places of rows that lie beside each other, `stride` apart: a line each.
    ///
    /// # Safety
    /// Every place has as many rows.
    #[target_feature(enable = "avx512f")]
    unsafe fn copy_places(&mut self, from: *const f32, stride: usize, rows: usize, inner: usize) -> Left {
        make_room(&mut self.lines, inner);
        let to = self.lines.as_mut_ptr().cast::<f32>();
        let mask = mask(rows);
        for place in 0..inner {
            // SAFETY: the mask is of the rows that there are.
            unsafe {
                let values = _mm512_maskz_loadu_ps(mask, from.wrapping_add(place * stride));
                _mm512_store_ps(to.add(place * LANES), values);
            }
        }
        Left { data: to, row: 1, step: LANES }
    }
}

/// Asks for share `number` of `count` of these rows' places, where they lie beside each other, before a [`RowGroup`] reads
/// them: rows too far apart for the processor to see that the next ones follow. There may be fewer rows.
#[target_feature(enable = "avx512f")]
pub fn prefetch_rows(view: View, rows: Range<usize>, inner: Range<usize>, (number, count): (usize, usize)) {
    if view.column_stride != 1 {
        return;
    }
    let lines = inner.len().div_ceil(LANES);
    for row in rows {
        for line in lines * number / count..lines * (number + 1) / count {
            let place = row * view.row_stride + inner.start + line * LANES;
            _mm_prefetch::<_MM_HINT_T1>(view.data.as_ptr().wrapping_add(place).cast());
        }
    }
}

/// A left matrix, its rows written one at a time.
pub struct PackedA {
    lines: Lines,
    pub inner: usize,
}

impl PackedA {
    /// For `count` rows of `inner` values.
    pub fn new(count: usize, inner: usize) -> Self {
        let mut lines = vec![];
        make_room(&mut lines, count * row_lines(inner));
        Self { lines, inner }
    }

    pub fn set(&mut self, row: usize, values: &[f32]) {
        let lines = &mut self.lines[row * row_lines(self.inner)..][..row_lines(self.inner)];
        assert!(values.len() == self.inner);
        // SAFETY: the row's lines have room for its values.
        unsafe { lines.as_mut_ptr().cast::<f32>().copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }

    /// The rows of a range, from step of K `start` on.
    pub fn group(&self, rows: Range<usize>, start: usize) -> Left {
        let row = row_lines(self.inner) * LANES;
        assert!(rows.end * row_lines(self.inner) <= self.lines.len());
        Left { data: self.lines.as_ptr().cast::<f32>().wrapping_add(rows.start * row + start), row, step: 1 }
    }
}
