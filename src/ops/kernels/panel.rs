//! Products of some rows, written one at a time by what computes them, with a matrix that is prepared once and used often:
//! what attention and the score head consist of.
use super::cpu::{Product, Start, Threads, View};
use super::{amx, avx512};

/// Rows and columns of results come in multiples of this.
const STRIP: usize = 32;

/// The rows to take at a time where they and what becomes of them are better small: a strip on AMX, two where panels are
/// packed once, else as many as the caller's products are efficient with.
pub fn rows_at_once(otherwise: usize) -> usize {
    if amx::are_available() {
        STRIP
    } else if avx512::are_available() {
        otherwise.min(2 * STRIP)
    } else {
        otherwise
    }
}

/// Room for so many rows, or columns, of results.
pub fn room(count: usize) -> usize {
    count.next_multiple_of(STRIP)
}

/// Whether a [`Product`] of this size would be formed in the same way, to the last bit.
pub fn is_as_product(shape: (usize, usize, usize)) -> bool {
    amx::gains(shape) == amx::are_available()
}

/// A left matrix. A row that was not set has any values.
pub enum Rows {
    Tiles(amx::Rows),
    Lines(avx512::Rows),
    Values { data: Vec<f32>, inner: usize },
}

/// A right matrix `[inner, columns]`.
pub enum Right {
    Tiles(amx::Right),
    Panels(avx512::Right),
    /// As it lay in memory: rows, or columns where `is_turned`.
    Values {
        data: Vec<f32>,
        inner: usize,
        columns: usize,
        is_turned: bool,
    },
}

impl Rows {
    /// For `count` rows of `inner` values.
    pub fn new(count: usize, inner: usize) -> Self {
        if amx::are_available() {
            Self::Tiles(amx::Rows::new(count, inner))
        } else if avx512::are_available() {
            Self::Lines(avx512::Rows::new(count, inner))
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

impl Right {
    /// From a view of `[inner, columns]`, one of whose strides is 1.
    pub fn new(view: View, (inner, columns): (usize, usize), threads: Threads) -> Self {
        if amx::are_available() {
            return Self::Tiles(amx::Right::new(view, (inner, columns), threads));
        }
        if avx512::are_available() {
            return Self::Panels(avx512::Right::new(view, (inner, columns), threads));
        }
        let is_turned = view.column_stride != 1;
        let (lines, length, stride) = match is_turned {
            true => (columns, inner, view.column_stride),
            false => (inner, columns, view.row_stride),
        };
        let data = (0..lines).flat_map(|line| &view.data[line * stride..][..length]).copied().collect();
        Self::Values { data, inner, columns, is_turned }
    }

    /// The first `count` of `rows` times this, each added to the row `start` where there is one. Results are in rows of
    /// [`room`] for the columns, as `start` is; `out` has [`room`] for the rows.
    pub fn multiply(&self, rows: &Rows, count: usize, start: Option<&[f32]>, out: &mut [f32]) {
        match (self, rows) {
            (Self::Tiles(right), Rows::Tiles(rows)) => right.multiply(rows, count, start, out),
            (Self::Panels(right), Rows::Lines(rows)) => right.multiply(rows, count, start, out),
            (Self::Values { data, inner, columns, is_turned }, Rows::Values { data: rows, .. }) => Product {
                shape: (count, *inner, *columns),
                a: View::rows(rows, *inner),
                b: match is_turned {
                    true => View::rows(data, *inner).transposed(),
                    false => View::rows(data, *columns),
                },
                scale: 1.0,
                start: start.map_or(Start::Zero, |start| Start::Row(&start[..*columns])),
                threads: Threads::One,
            }
            .into(out, room(*columns)),
            _ => unreachable!("both are of the machine's kind"),
        }
    }
}
