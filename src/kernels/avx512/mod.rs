//! Matrix products in f32 on vector units of 512 bits, in the way of BLIS (Van Zee and van de Geijn 2015): a micro-kernel
//! whose results stay in registers, the right matrix packed into micro-panels that stay in a core's cache.
//!
//! What is not as there: rows of the left matrix are read where they lie, one value at a time, and a right matrix that is
//! used often is packed once ([`PackedB`]). Sums run over the inner dimension in one order, however
//! the work is cut.
mod micro_kernel;
mod pack;
mod panel;
mod transpose;

use super::matrix::{Memory, Product, Start, Threads, View, Windows};
use crate::system::vectors::Vectors;
use micro_kernel::{LANES, MR, NR, OutputTile, Panel, tile};
use pack::{Panels, RowGroup, prefetch_rows};
pub use panel::{PackedA, PackedB};
use rayon::prelude::*;
use std::ops::Range;
pub use transpose::transpose;

/// Steps of K that are summed before results go to memory.
const KC: usize = 384;
/// Columns of the right matrix that are packed at a time: with [`KC`] 576 KiB of a core's second level of cache.
const NC: usize = 384;
/// Products of fewer rows with columns that lie in one piece take the columns for rows: reading them is nearly all there
/// is to do, and packing would be another reading.
const FEW_ROWS: usize = 8;
/// Columns that a task then takes.
const FEW_ROWS_COLUMNS: usize = 16 * MR;
/// Up to so many rows meet columns that lie beside each other where they lie.
const UNPACKED_ROWS: usize = 2 * MR;

/// Whether this machine has such vectors, and `SEG4DIFF_NO_AVX512` is not set.
pub fn are_available() -> bool {
    matches!(Vectors::of_this_machine(), Vectors::Avx512)
}

/// Whether `product` is of a kind that gains.
pub fn takes(product: &Product) -> bool {
    product.a.is_plain() && product.b.is_plain() && are_available()
}

/// `0..length` in parts of at most `most`, as even as they can be in multiples of `of`.
fn parts(length: usize, most: usize, of: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let size = length.div_ceil(length.div_ceil(most).max(1)).next_multiple_of(of);
    (0..length).step_by(size.max(1)).map(move |start| start..length.min(start + size))
}

/// The steps of K that are summed one after the other: the same for a product and for panels, to the last bit.
fn inner_parts(inner: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    parts(inner, KC, 1)
}

/// Rows that a task takes: all, where blocks of columns are enough to keep all workers at work, else their share.
fn task_rows(m: usize, blocks: usize, workers: usize) -> usize {
    let are_enough = blocks.is_multiple_of(workers) || blocks >= 4 * workers;
    if are_enough { m } else { m.div_ceil(workers).max(2 * MR) }
}

/// Where results go.
struct Output {
    memory: Memory,
    stride: usize,
    windows: Windows,
}

impl Output {
    /// The parts of a range of the rows of all blocks that lie in one block: how far that block's rows lie behind the first
    /// block's in the left matrix and in the output, and which of its rows they are.
    fn blocks(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, usize, Range<usize>)> + use<> {
        let Windows { rows: each, a, out, .. } = self.windows;
        let first = rows.start / each;
        (first..rows.end.div_ceil(each)).map(move |block| {
            let start = block * each;
            (block * a, block * out, rows.start.max(start) - start..rows.end.min(start + each) - start)
        })
    }
}

/// Computes `product`, which [`takes`] took, into `out` for every block of rows; the right matrix is packed once for all.
///
/// # Safety
/// The product's views lie inside their slices for every block, a starting row has its columns, and `out` points to the blocks'
/// rows, `out_stride` apart, that no one else uses.
#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "all rest on the section above; `takes` asked for the instructions"
)]
pub unsafe fn multiply_windows(product: &Product, windows: Windows, out: *mut f32, out_stride: usize) {
    let out = &Output { memory: Memory(out), stride: out_stride, windows };
    let (_, k, n) = product.shape;
    let m = windows.count * windows.rows;
    let is_one = windows.count == 1;
    let blocks = || parts(n, NC, NR);
    let workers = product.threads.count();
    let rows = task_rows(m, blocks().count(), workers);
    if is_one && m < FEW_ROWS && product.b.column_stride != 1 {
        let mut panels = Panels::default();
        unsafe { panels.pack(product.a.transposed(), 0..k, 0..m, Threads::One) };
        let parts = parts(n, FEW_ROWS_COLUMNS, MR);
        let task = |columns| unsafe { few_rows(product, &panels, columns, out) };
        match workers {
            1 => parts.for_each(task),
            _ => parts.collect::<Vec<_>>().into_par_iter().for_each(task),
        }
    } else if is_one && m <= UNPACKED_ROWS && product.b.column_stride == 1 && n.is_multiple_of(LANES) {
        let task = |columns: Range<usize>| {
            let mut group = RowGroup::default();
            for inner in inner_parts(k) {
                let start = product.b.data.as_ptr().wrapping_add(inner.start * product.b.row_stride + columns.start);
                let panels = (0..columns.len())
                    .step_by(NR)
                    .map(|column| Panel { data: start.wrapping_add(column), step: product.b.row_stride });
                unsafe { block(product, panels, &mut group, (0..m, inner, columns.clone()), out) };
            }
        };
        match workers {
            1 => blocks().for_each(task),
            _ => parts(n, n.div_ceil(workers).min(NC), NR).collect::<Vec<_>>().into_par_iter().for_each(task),
        }
    } else if workers == 1 {
        let mut scratch = Scratch::default();
        blocks().for_each(|columns| unsafe { scratch.whole_block(product, columns, out) });
    } else if rows >= m {
        let tasks = blocks().collect::<Vec<_>>().into_par_iter().with_max_len(1);
        tasks.for_each_init(Scratch::default, |scratch, columns| unsafe { scratch.whole_block(product, columns, out) });
    } else {
        // Tasks share a block's panels.
        let mut panels = Panels::default();
        for columns in blocks() {
            for inner in inner_parts(k) {
                unsafe { panels.pack(product.b, inner.clone(), columns.clone(), Threads::All) };
                let tasks = parts(m, rows, MR).collect::<Vec<_>>().into_par_iter().with_max_len(1);
                tasks.for_each_init(RowGroup::default, |group, rows| unsafe {
                    block(product, panels.iter(0), group, (rows, inner.clone(), columns.clone()), out);
                });
            }
        }
    }
}

/// What a task works with.
#[derive(Default)]
struct Scratch {
    panels: Panels,
    group: RowGroup,
}

impl Scratch {
    /// The results of all rows and some columns, over all steps of K.
    ///
    /// # Safety
    /// As [`multiply_windows`], and no one else uses these places of `out`.
    unsafe fn whole_block(&mut self, product: &Product, columns: Range<usize>, out: &Output) {
        let rows = 0..out.windows.count * out.windows.rows;
        for inner in inner_parts(product.shape.1) {
            // SAFETY: the caller's promise.
            unsafe {
                self.panels.pack(product.b, inner.clone(), columns.clone(), Threads::One);
                block(product, self.panels.iter(0), &mut self.group, (rows.clone(), inner, columns.clone()), out);
            }
        }
    }
}

/// What some steps of K add to the results of some rows and columns, whose panels are given.
///
/// # Safety
/// As [`multiply_windows`]; the instructions are there, and no one else uses these places of `out`.
#[target_feature(enable = "avx512f")]
unsafe fn block(
    product: &Product,
    panels: impl Iterator<Item = Panel> + Clone,
    group: &mut RowGroup,
    (rows, inner, columns): (Range<usize>, Range<usize>, Range<usize>),
    out: &Output,
) {
    for (a_start, out_start, rows) in out.blocks(rows) {
        let a = View { data: &product.a.data[a_start..], ..product.a };
        for part in parts(rows.len(), MR, 1) {
            let rows = rows.start + part.start..rows.start + part.end;
            // SAFETY: the views are inside their slices.
            let left = unsafe { group.of(a, rows.clone(), inner.clone()) };
            for (number, panel) in panels.clone().enumerate() {
                let first = columns.start + number * NR;
                let share = (number, columns.len().div_ceil(NR));
                prefetch_rows(a, rows.end..rows.end + MR, inner.clone(), share);
                let data = out.memory.from(out_start + rows.start * out.stride + first);
                let start = if inner.start > 0 { Start::Output } else { product.start };
                let start = start.below(data, out.stride, first);
                let columns = NR.min(columns.end - first);
                let target = OutputTile { data, stride: out.stride, columns, start, scale: product.scale };
                // SAFETY: the rows and the panel are as long as `inner`; the rows and columns are inside `out`.
                unsafe { tile(rows.len(), inner.len(), left, panel, target) };
            }
        }
    }
}

/// Some columns' results, the columns being taken for rows and the rows, of which `panels` has all, for columns.
///
/// # Safety
/// As [`block`].
#[target_feature(enable = "avx512f")]
unsafe fn few_rows(product: &Product, panels: &Panels, columns: Range<usize>, out: &Output) {
    let (m, k, _) = product.shape;
    let mut group = RowGroup::default();
    for part in parts(columns.len(), MR, 1) {
        let columns = columns.start + part.start..columns.start + part.end;
        let mut results = [[0f32; LANES]; MR];
        for inner in inner_parts(k) {
            // SAFETY: the views are inside their slices.
            let left = unsafe { group.of(product.b.transposed(), columns.clone(), inner.clone()) };
            let data = results.as_mut_ptr().cast::<f32>();
            let start = (inner.start > 0).then_some((data.cast_const(), LANES));
            let target = OutputTile { data, stride: LANES, columns: m, start, scale: product.scale };
            for panel in panels.iter(inner.start) {
                // SAFETY: the columns and the one panel are as long as `inner`; results have room for all rows.
                unsafe { tile(columns.len(), inner.len(), left, panel, target) };
            }
        }
        for (column, results) in columns.zip(&results) {
            for (row, result) in results.iter().enumerate().take(m) {
                // SAFETY: the row and column are inside `out`.
                unsafe { product.start.write(*result, out.memory.from(row * out.stride + column), column) };
            }
        }
    }
}
