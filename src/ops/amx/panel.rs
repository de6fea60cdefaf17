//! Products of a strip of rows, written a row at a time by what computes them, with a matrix written out beforehand.
use super::pack::{DEPTH, Operand, Packing, STRIP, Tiles, ZEROS, write_row};
use super::registers::Registers;
use crate::ops::cpu::View;

/// A left matrix of [`STRIP`] rows as tiles. A row that was not set has any values.
pub struct Rows(Vec<Tiles>);

/// A right matrix as tiles.
pub struct Right {
    tiles: Vec<Tiles>,
    steps: usize,
}

fn steps(inner: usize) -> usize {
    inner.div_ceil(DEPTH)
}

impl Rows {
    /// For rows of `inner` values. Where the units are available only.
    pub fn new(inner: usize) -> Self {
        Self(vec![ZEROS; 2 * steps(inner)])
    }

    pub fn set(&mut self, row: usize, values: &[f32]) {
        // SAFETY: only made where the units are available.
        unsafe { write_row(values, row, &mut self.0) };
    }
}

impl Right {
    /// From a view of `[inner, columns]`, one of whose strides is 1. Where the units are available only.
    pub fn new(view: View, (inner, columns): (usize, usize)) -> Self {
        assert!(view.fits(inner, columns));
        let operand =
            Operand { view: view.transposed(), lines: columns, inner: (0, inner), scale: 1.0, is_right: true };
        let steps = steps(inner);
        let mut tiles = vec![ZEROS; columns.div_ceil(STRIP) * 2 * steps];
        for (strip, tiles) in tiles.chunks_exact_mut(2 * steps).enumerate() {
            // SAFETY: the view fits; the units are available.
            unsafe { Packing::new(operand, strip * STRIP, tiles, 1).go_on() };
        }
        Self { tiles, steps }
    }

    /// `rows · self`, written to 32 rows of whole strips of columns; those beyond the matrix are zero.
    pub fn multiply(&self, rows: &Rows, out: &mut [f32]) {
        let strips = self.tiles.len() / (2 * self.steps);
        let stride = strips * STRIP;
        assert!(rows.0.len() == 2 * self.steps && out.len() >= STRIP * stride);
        // SAFETY: the units are available, and nothing here runs other tasks.
        let mut registers = unsafe { Registers::new() };
        for (strip, tiles) in self.tiles.chunks_exact(2 * self.steps).enumerate() {
            let target = out[strip * STRIP..].as_mut_ptr();
            // SAFETY: `out` has 32 rows of `stride` values.
            unsafe {
                registers.multiply((rows.0.as_ptr(), tiles.as_ptr()), self.steps, (target, stride), None, None);
            }
        }
    }
}
