//! Products of some rows, written one at a time by what computes them, with a matrix that is prepared once and used often:
//! what attention and the score head consist of.
use super::amx;
use super::cpu::{Product, Start, Threads, View};

/// Rows and columns of results come in multiples of this.
const STRIP: usize = 32;

/// The rows to take at a time where they and what becomes of them are better small: a strip on AMX, else as many as the
/// caller's products are efficient with.
pub fn rows_at_once(otherwise: usize) -> usize {
    if amx::are_available() { STRIP } else { otherwise }
}

/// Room for so many rows, or columns, of results.
pub fn room(count: usize) -> usize {
    count.next_multiple_of(STRIP)
}

/// A left matrix. A row that was not set has any values.
pub enum Rows {
    Tiles(amx::Rows),
    Values { data: Vec<f32>, inner: usize },
}

/// A right matrix `[inner, columns]`.
pub enum Right {
    Tiles(amx::Right),
    Values { data: Vec<f32>, inner: usize, columns: usize },
}

impl Rows {
    /// For `count` rows of `inner` values.
    pub fn new(count: usize, inner: usize) -> Self {
        match amx::are_available() {
            true => Self::Tiles(amx::Rows::new(count, inner)),
            false => Self::Values { data: vec![0.0; count * inner], inner },
        }
    }

    /// Writes a row.
    pub fn set(&mut self, row: usize, values: &[f32]) {
        match self {
            Self::Tiles(tiles) => tiles.set(row, values),
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
        let at = |place: usize| view.data[place / columns * view.row_stride + place % columns * view.column_stride];
        Self::Values { data: (0..inner * columns).map(at).collect(), inner, columns }
    }

    /// The first `count` of `rows` times this, in rows of [`room`] for the columns; `out` has [`room`] for the rows.
    pub fn multiply(&self, rows: &Rows, count: usize, out: &mut [f32]) {
        match (self, rows) {
            (Self::Tiles(right), Rows::Tiles(rows)) => right.multiply(rows, count, out),
            (Self::Values { data, inner, columns }, Rows::Values { data: rows, .. }) => Product {
                shape: (count, *inner, *columns),
                a: View::rows(rows, *inner),
                b: View::rows(data, *columns),
                scale: 1.0,
                start: Start::Zero,
                threads: Threads::One,
            }
            .into(out, room(*columns)),
            _ => unreachable!("both are of the machine's kind"),
        }
    }
}
