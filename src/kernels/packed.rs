//! GEMM with a pre-packed right matrix B; rows of the left matrix A are packed as they are produced: what attention and the
//! score head consist of.
use super::matrix::{Product, Start, Threads, View};
use super::{amx, avx512};

/// Rows and columns of results come in multiples of this.
const MICRO_PANEL: usize = 32;

/// The rows to take at a time where they and what becomes of them are better small: a micro-panel on AMX, two where panels are
/// packed once, else as many as the caller's products are efficient with.
pub fn rows_at_once(otherwise: usize) -> usize {
    if amx::are_available() {
        MICRO_PANEL
    } else if avx512::are_available() {
        otherwise.min(2 * MICRO_PANEL)
    } else {
        otherwise
    }
}

/// Room for so many rows, or columns, of results.
pub fn room(count: usize) -> usize {
    count.next_multiple_of(MICRO_PANEL)
}

/// Whether a [`Product`] of this size would be formed in the same way, to the last bit.
pub fn is_as_product(shape: (usize, usize, usize)) -> bool {
    amx::gains(shape) == amx::are_available()
}

/// A left matrix. A row that was not set has any values.
pub enum PackedA {
    Tiles(amx::PackedA),
    Lines(avx512::PackedA),
    Values { data: Vec<f32>, inner: usize },
}

/// A right matrix `[inner, columns]`.
pub enum PackedB {
    Tiles(amx::PackedB),
    Panels(avx512::PackedB),
    /// As it lay in memory: rows, or columns where `is_transposed`.
    Values {
        data: Vec<f32>,
        inner: usize,
        columns: usize,
        is_transposed: bool,
    },
}

impl PackedA {
    /// For `count` rows of `inner` values.
    pub fn new(count: usize, inner: usize) -> Self {
        if amx::are_available() {
            Self::Tiles(amx::PackedA::new(count, inner))
        } else if avx512::are_available() {
            Self::Lines(avx512::PackedA::new(count, inner))
        } else {
            Self::Values { data: vec![0.0; count * inner], inner }
        }
    }

    /// Writes a row.
    pub fn set(&mut self, row: usize, values: &[f32]) {
        match self {
            Self::Tiles(tiles) => tiles.set(row, values),
            Self::Lines(lines) => lines.set(row, values),
            Self::Values { data, inner } => data[row * *inner..][..*inner].copy_from_slice(values),
        }
    }
}

impl PackedB {
    /// From a view of `[inner, columns]`, one of whose strides is 1.
    pub fn new(view: View, (inner, columns): (usize, usize), threads: Threads) -> Self {
        if amx::are_available() {
            return Self::Tiles(amx::PackedB::new(view, (inner, columns), threads));
        }
        if avx512::are_available() {
            return Self::Panels(avx512::PackedB::new(view, (inner, columns), threads));
        }
        let is_transposed = view.column_stride != 1;
        let (lines, length, stride) = match is_transposed {
            true => (columns, inner, view.column_stride),
            false => (inner, columns, view.row_stride),
        };
        let data = (0..lines).flat_map(|line| &view.data[line * stride..][..length]).copied().collect();
        Self::Values { data, inner, columns, is_transposed }
    }

    /// The first `count` of `rows` times this, each added to the row `start` where there is one. Results are in rows of
    /// [`room`] for the columns, as `start` is; `out` has [`room`] for the rows.
    pub fn multiply(&self, rows: &PackedA, count: usize, start: Option<&[f32]>, out: &mut [f32]) {
        match (self, rows) {
            (Self::Tiles(right), PackedA::Tiles(rows)) => right.multiply(rows, count, start, out),
            (Self::Panels(right), PackedA::Lines(rows)) => right.multiply(rows, count, start, out),
            (Self::Values { data, inner, columns, is_transposed }, PackedA::Values { data: rows, .. }) => {
                let b = match is_transposed {
                    true => View::rows(data, *inner).transposed(),
                    false => View::rows(data, *columns),
                };
                let start = start.map_or(Start::Zero, |start| Start::Row(&start[..*columns]));
                let product = Product::new((count, *inner, *columns), View::rows(rows, *inner), b);
                Product { start, ..product }.into(out, room(*columns));
            }
            _ => unreachable!("both are of the machine's kind"),
        }
    }
}
