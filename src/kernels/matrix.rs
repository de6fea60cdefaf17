//! Matrices on the CPU, and the products that are made of them.

/// A read-only matrix over a slice: element (i, j) at `i * rows + j * cols`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `width` elements, one after the other.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row_stride: width, column_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Self { data: self.data, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    /// Without the first rows.
    pub fn skip_rows(self, rows: usize) -> Self {
        Self { data: &self.data[rows * self.row_stride..], ..self }
    }

    /// Whether its rows or its columns lie in one piece.
    pub fn is_plain(&self) -> bool {
        self.row_stride == 1 || self.column_stride == 1
    }

    /// Whether a matrix of this size lies in the slice.
    pub fn fits(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// Whether a product may use all threads, or runs inside a task that has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    One,
    All,
}

impl Threads {
    pub fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::All => rayon::current_num_threads(),
        }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// What the output holds.
    Output,
    /// The same row of `n` values for every row.
    Row(&'a [f32]),
}

impl Start<'_> {
    /// What is added to results from `target` on, whose rows are `stride` apart and whose first column is `column`: where it
    /// lies, and how far its rows are apart.
    pub fn below(self, target: *const f32, stride: usize, column: usize) -> Option<(*const f32, usize)> {
        match self {
            Self::Zero => None,
            Self::Output => Some((target, stride)),
            Self::Row(row) => Some((row[column..].as_ptr(), 0)),
        }
    }

    /// Writes a result of column `column`.
    ///
    /// # Safety
    /// `target` is its place, which nobody else uses, and set where it begins with what the output holds.
    pub unsafe fn write(self, value: f32, target: *mut f32, column: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            *target = match self {
                Self::Zero => value,
                Self::Output => *target + value,
                Self::Row(row) => row[column] + value,
            }
        }
    }
}

/// `out = start + scale · a·b`, with `a` `[m, k]`, `b` `[k, n]` and `out` `[m, n]` in rows of `out_stride`.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub shape: (usize, usize, usize),
    pub a: View<'a>,
    pub b: View<'a>,
    pub scale: f32,
    pub start: Start<'a>,
    pub threads: Threads,
}

/// Blocks of rows that one product is formed for, each with its own part of the left matrix and of the output.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    pub count: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Values from block to block of the left matrix.
    pub a: usize,
    /// Values from block to block of the output.
    pub out: usize,
}

impl<'a> Product<'a> {
    /// `a·b` on one thread.
    pub fn new(shape: (usize, usize, usize), a: View<'a>, b: View<'a>) -> Self {
        Self { shape, a, b, scale: 1.0, start: Start::Zero, threads: Threads::One }
    }
}

impl Windows {
    /// One block.
    pub fn one(rows: usize) -> Self {
        Self { count: 1, rows, a: 0, out: 0 }
    }
}

/// Memory of an output, of which every task writes a part of its own.
#[derive(Clone, Copy)]
pub struct Memory(pub *mut f32);

// SAFETY: no two tasks write the same part.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// The memory from a place on. A method, so that closures capture the whole and not the bare pointer.
    pub fn from(self, start: usize) -> *mut f32 {
        self.0.wrapping_add(start)
    }
}
