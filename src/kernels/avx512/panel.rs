//! Products of rows, written a row at a time by what computes them, with a matrix packed beforehand.
use super::micro_kernel::{MR, NR, OutputTile, tile};
pub use super::pack::PackedA;
use super::pack::Panels;
use super::{inner_parts, parts};
use crate::kernels::matrix::{Threads, View};

/// A right matrix in micro-panels.
pub struct PackedB(Panels);

impl PackedB {
    /// From a view of `[inner, columns]`, one of whose strides is 1. Where the instructions are available only.
    pub fn new(view: View, (inner, columns): (usize, usize), threads: Threads) -> Self {
        assert!(inner > 0 && columns > 0 && view.fits(inner, columns) && super::are_available());
        let mut panels = Panels::default();
        // SAFETY: the view fits; the instructions are available.
        unsafe { panels.pack(view, 0..inner, 0..columns, threads) };
        Self(panels)
    }

    /// The first `count` of `rows` times this, each added to `start` where there is one. Results are in rows of whole
    /// panels.
    pub fn multiply(&self, rows: &PackedA, count: usize, start: Option<&[f32]>, out: &mut [f32]) {
        let Self(panels) = self;
        let stride = panels.count() * NR;
        assert!(rows.inner == panels.inner && out.len() >= count * stride);
        assert!(start.is_none_or(|start| start.len() >= stride));
        for inner in inner_parts(panels.inner) {
            for (number, panel) in panels.iter(inner.start).enumerate() {
                for group in parts(count, MR, 1) {
                    let data = out[group.start * stride + number * NR..].as_mut_ptr();
                    let start = match start {
                        _ if inner.start > 0 => Some((data.cast_const(), stride)),
                        start => start.map(|start| (start[number * NR..].as_ptr(), 0)),
                    };
                    let target = OutputTile { data, stride, columns: NR, start, scale: 1.0 };
                    let left = rows.group(group.clone(), inner.start);
                    // SAFETY: the group's rows are inside `rows` and, with these columns, inside `out`; the instructions
                    // are available where a `PackedB` is.
                    unsafe { tile(group.len(), inner.len(), left, panel, target) };
                }
            }
        }
    }
}
