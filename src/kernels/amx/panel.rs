//! Products of rows, written a row at a time by what computes them, with a matrix written out beforehand.
use super::memory::MicroPanels;
use super::pack::{DEPTH, MICRO_PANEL, Operand, Packing, Tiles, write_row};
use super::registers::Registers;
use crate::kernels::matrix::{Threads, View};
use rayon::prelude::*;

/// A left matrix as tiles. A row that was not set has any values.
pub struct PackedA {
    tiles: MicroPanels,
    steps: usize,
}

/// A right matrix as tiles.
pub struct PackedB {
    tiles: MicroPanels,
    steps: usize,
}

impl PackedA {
    /// For `count` rows of `inner` values. Where the units are available only.
    pub fn new(count: usize, inner: usize) -> Self {
        let steps = inner.div_ceil(DEPTH);
        Self { tiles: MicroPanels::new(count, steps), steps }
    }

    pub fn set(&mut self, row: usize, values: &[f32]) {
        let micro_panel = &mut self.tiles[row / MICRO_PANEL * 2 * self.steps..][..2 * self.steps];
        // SAFETY: only made where the units are available.
        unsafe { write_row(values, row % MICRO_PANEL, micro_panel) };
    }
}

impl PackedB {
    /// From a view of `[inner, columns]`, one of whose strides is 1. Where the units are available only.
    pub fn new(view: View, (inner, columns): (usize, usize), threads: Threads) -> Self {
        assert!(view.fits(inner, columns));
        let operand =
            Operand { view: view.transposed(), lines: columns, inner: (0, inner), scale: 1.0, is_right: true };
        let steps = inner.div_ceil(DEPTH);
        let mut tiles = MicroPanels::new(columns, steps);
        // SAFETY: the view fits; the units are available.
        let pack = |(micro_panel, tiles): (usize, &mut [Tiles])| unsafe {
            Packing::new(operand, micro_panel * MICRO_PANEL, tiles, 1).go_on();
        };
        match threads {
            Threads::One => tiles.chunks_exact_mut(2 * steps).enumerate().for_each(pack),
            Threads::All => tiles.par_chunks_exact_mut(2 * steps).enumerate().for_each(pack),
        }
        Self { tiles, steps }
    }

    /// The first `count` of `rows` times this, added to `start` where there is one, and written to whole micro-panels of rows and
    /// columns.
    pub fn multiply(&self, rows: &PackedA, count: usize, start: Option<&[f32]>, out: &mut [f32]) {
        let micro_panel = 2 * self.steps;
        let stride = self.tiles.len() / micro_panel * MICRO_PANEL;
        let row_strips = count.div_ceil(MICRO_PANEL);
        assert!(rows.steps == self.steps && rows.tiles.len() >= row_strips * micro_panel);
        assert!(out.len() >= row_strips * MICRO_PANEL * stride && start.is_none_or(|start| start.len() >= stride));
        let out = out.as_mut_ptr();
        // SAFETY: the units are available, and nothing here runs other tasks.
        let mut registers = unsafe { Registers::new() };
        for (column, right) in self.tiles.chunks_exact(micro_panel).enumerate() {
            // One row for all.
            let start = start.map(|start| (start[column * MICRO_PANEL..].as_ptr(), 0));
            for (row, left) in rows.tiles.chunks_exact(micro_panel).take(row_strips).enumerate() {
                // SAFETY: these 32 rows of 32 are inside `out`, and 32 values in `start`; both micro-panels have as many steps.
                unsafe {
                    let target = out.add((row * stride + column) * MICRO_PANEL);
                    registers.multiply((left.as_ptr(), right.as_ptr()), self.steps, (target, stride), start, None);
                }
            }
        }
    }
}
