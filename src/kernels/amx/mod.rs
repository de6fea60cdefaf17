//! Matrix products in f32 on the matrix units of recent Xeons (AMX), which multiply in bfloat16 and add in f32.
//!
//! An f32 is the sum of three bfloat16 numbers. Of the nine products of two such sums six are formed; the other three are
//! below a 2^-24th of the whole. So rounding is that of an f32 product, at up to three times the speed of the vector units.
//! (Intel's oneMKL has the same as `BF16x3`.)
//!
//! A task packs some lines of one matrix, the stationary operand, as tiles, which stay in its cache, and streams the other past
//! them a micro-panel at a time, packing the next one while the registers are busy with the present one. Sums run over K in one
//! order, however the work is cut.
mod memory;
mod pack;
mod panel;
mod registers;

use super::matrix::{Memory, Product, Start};
use crate::system::vectors::Vectors;
use memory::MicroPanels;
use pack::{DEPTH, MICRO_PANEL, Operand, Packing};
pub use panel::{PackedA, PackedB};
use rayon::prelude::*;
use registers::{PACK_INTERVALS, Registers};
use std::ops::Range;
use std::sync::OnceLock;

/// Steps of K that are summed before results go to memory.
const INNER: usize = 512;
/// Values that a task holds as tiles: 768 KiB of a core's cache.
const STATIONARY: usize = 1 << 17;
/// Products, in multiplications, below which the vector units are as fast.
const SMALL: usize = 1 << 20;

/// Whether this machine has the units and the kernel lends them, and neither `SEG4DIFF_NO_AMX` nor `SEG4DIFF_NO_AVX512` is
/// set; asks once.
pub fn are_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        let leaf = std::arch::x86_64::__cpuid_count(7, 0);
        let (bf16, tiles) = (leaf.edx >> 22 & 1, leaf.edx >> 24 & 1);
        let is_wanted = std::env::var_os("SEG4DIFF_NO_AMX").is_none();
        is_wanted
            && (bf16, tiles) == (1, 1)
            && matches!(Vectors::of_this_machine(), Vectors::Avx512)
            // SAFETY: the call asks for a permission and touches no memory of ours.
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
    })
}

/// Whether `product` is of a kind and size that gains.
pub fn takes(product: &Product) -> bool {
    product.a.is_plain() && product.b.is_plain() && gains(product.shape)
}

/// Whether products of this size are faster so.
pub fn gains((m, k, n): (usize, usize, usize)) -> bool {
    m.min(k).min(n) >= MICRO_PANEL && m * k * n >= SMALL && are_available()
}

/// How a product is cut.
struct Plan<'a> {
    stationary: Operand<'a>,
    streamed: Operand<'a>,
    /// Lines of each that a task takes, in whole micro-panels.
    stationary_lines: usize,
    streamed_lines: usize,
    /// Steps of K at a time.
    inner: usize,
}

impl<'a> Plan<'a> {
    fn new(product: &Product<'a>, workers: usize) -> Self {
        let (m, k, n) = product.shape;
        let operand = |view, lines, scale, is_right| Operand { view, lines, inner: (0, k), scale, is_right };
        let left = operand(product.a, m, product.scale, false);
        let right = operand(product.b.transposed(), n, 1.0, true);
        let inner = k.div_ceil(k.div_ceil(INNER)).next_multiple_of(DEPTH);
        let most = (STATIONARY / inner).next_multiple_of(MICRO_PANEL);
        // Results are written along their rows where the right matrix is stationary.
        let (stationary, streamed) = if m <= n && m <= most { (left, right) } else { (right, left) };
        let even = |lines: usize, parts: usize| lines.div_ceil(parts).next_multiple_of(MICRO_PANEL);
        let stationary_lines = even(stationary.lines, stationary.lines.div_ceil(most));
        let streamed_lines = even(streamed.lines, workers.div_ceil(stationary.lines.div_ceil(stationary_lines)));
        Self { stationary, streamed, stationary_lines, streamed_lines, inner }
    }

    /// Lines of both for every task.
    fn tasks(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let cut = |lines: usize, size: usize| (0..lines).step_by(size).map(move |start| start..lines.min(start + size));
        cut(self.streamed.lines, self.streamed_lines)
            .flat_map(|streamed| {
                cut(self.stationary.lines, self.stationary_lines).map(move |stationary| (stationary, streamed.clone()))
            })
            .collect()
    }
}

/// Computes `product`, which [`takes`] took, into `out`.
///
/// # Safety
/// The product's views lie inside their slices, a starting row has its columns, and `out` points to its rows, `out_stride`
/// apart, that no one else uses.
pub unsafe fn multiply(product: &Product, out: *mut f32, out_stride: usize) {
    let out = Memory(out);
    let workers = product.threads.count();
    let plan = Plan::new(product, workers);
    let k = product.shape.1;
    let task = |(stationary_lines, streamed_lines): (Range<usize>, Range<usize>)| {
        for start in (0..k).step_by(plan.inner) {
            let inner = (start, k.min(start + plan.inner));
            let stationary = (Operand { inner, ..plan.stationary }, stationary_lines.clone());
            let streamed = (Operand { inner, ..plan.streamed }, streamed_lines.clone());
            let before = if start > 0 { Start::Output } else { product.start };
            // SAFETY: as the caller says; `takes` asked for the units.
            unsafe { block(stationary, streamed, before, (out, out_stride)) };
        }
    };
    let tasks = plan.tasks();
    match tasks.len() == 1 || workers == 1 {
        true => tasks.into_iter().for_each(task),
        false => tasks.into_par_iter().for_each(task),
    }
}

/// The results of some lines, whose first ones are multiples of [`MICRO_PANEL`], of both matrices.
///
/// # Safety
/// The units are there, the operands' views inside their slices, and no one else uses these lines' places in `out`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn block(
    (stationary, stationary_lines): (Operand, Range<usize>),
    (streamed, streamed_lines): (Operand, Range<usize>),
    start: Start,
    (out, out_stride): (Memory, usize),
) {
    let steps = stationary.steps();
    // Two groups of tiles a step: the micro-panel's upper and lower half.
    let micro_panel = 2 * steps;
    let micro_panels = stationary_lines.len().div_ceil(MICRO_PANEL);
    let (mut stationary_tiles, mut streamed_tiles) =
        (MicroPanels::new(stationary_lines.len(), steps), MicroPanels::new(2 * MICRO_PANEL, steps));
    let (mut present, mut next) = streamed_tiles.split_at_mut(micro_panel);
    // SAFETY: the views are inside their slices.
    let pack = |operand, line, tiles| unsafe { Packing::new(operand, line, tiles, 1).go_on() };
    for (line, tiles) in
        stationary_lines.clone().step_by(MICRO_PANEL).zip(stationary_tiles.chunks_exact_mut(micro_panel))
    {
        pack(stationary, line, tiles);
    }
    pack(streamed, streamed_lines.start, present);
    // SAFETY: the units are there, and nothing below this runs other tasks.
    let mut registers = unsafe { Registers::new() };
    for line in streamed_lines.clone().step_by(MICRO_PANEL) {
        let to_pack = if line + MICRO_PANEL < streamed_lines.end { &mut *next } else { &mut [] };
        // SAFETY: as above.
        let mut packing =
            unsafe { Packing::new(streamed, line + MICRO_PANEL, to_pack, micro_panels * steps * PACK_INTERVALS) };
        for (stationary_line, stationary_tiles) in
            stationary_lines.clone().step_by(MICRO_PANEL).zip(stationary_tiles.chunks_exact(micro_panel))
        {
            let (of_stationary, of_streamed) = ((stationary_line, stationary_lines.end), (line, streamed_lines.end));
            let (operands, rows, columns) = match stationary.is_right {
                true => ((present.as_ptr(), stationary_tiles.as_ptr()), of_streamed, of_stationary),
                false => ((stationary_tiles.as_ptr(), present.as_ptr()), of_stationary, of_streamed),
            };
            let (height, width) = (MICRO_PANEL.min(rows.1 - rows.0), MICRO_PANEL.min(columns.1 - columns.0));
            let target = out.from(rows.0 * out_stride + columns.0);
            if (height, width) == (MICRO_PANEL, MICRO_PANEL) {
                let start = start.below(target, out_stride, columns.0);
                // SAFETY: these 32 rows of 32 are inside the output, and 32 values in the row; both micro-panels have as many
                // steps.
                unsafe { registers.multiply(operands, steps, (target, out_stride), start, Some(&mut packing)) };
                continue;
            }
            let mut edge = [0f32; MICRO_PANEL * MICRO_PANEL];
            // SAFETY: `edge` has 32 rows of 32.
            unsafe { registers.multiply(operands, steps, (edge.as_mut_ptr(), MICRO_PANEL), None, Some(&mut packing)) };
            for (y, values) in edge.chunks_exact(MICRO_PANEL).enumerate().take(height) {
                for (x, value) in values.iter().enumerate().take(width) {
                    // SAFETY: `height` rows of `width` values are inside the output.
                    unsafe { start.write(*value, target.add(y * out_stride + x), columns.0 + x) };
                }
            }
        }
        std::mem::swap(&mut present, &mut next);
    }
}
