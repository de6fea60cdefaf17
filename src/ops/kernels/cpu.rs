//! What the CPU paths share: matrix products on strided views, vector loops, and work cut the same way whatever the
//! number of threads, so that results do not depend on it.
pub(crate) use crate::system::vectors::vectorised;
use rayon::prelude::*;
use std::mem::MaybeUninit;

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

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// What the output holds.
    Output,
    /// The same row of `n` values for every row.
    Row(&'a [f32]),
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

/// Memory of an output.
#[derive(Clone, Copy)]
struct Memory(*mut f32);

// SAFETY: every task writes a block of its own.
unsafe impl Sync for Memory {}

impl Memory {
    fn from(self, start: usize) -> *mut f32 {
        self.0.wrapping_add(start)
    }
}

impl Product<'_> {
    /// Writes the product of every block of rows to memory that may hold anything, rows `out_stride` apart. It must not
    /// begin with what the output holds.
    pub fn fill(self, windows: Windows, out: &mut [MaybeUninit<f32>], out_stride: usize) {
        assert!(!matches!(self.start, Start::Output));
        // SAFETY: it reads nothing of the output.
        unsafe { self.add(windows, out, out_stride) }
    }

    /// Writes the product of every block of rows to `out`, rows `out_stride` apart.
    pub fn into_windows(self, windows: Windows, out: &mut [f32], out_stride: usize) {
        // SAFETY: f32 as memory that may hold anything, into which f32 are written.
        let out = unsafe { &mut *(out as *mut [f32] as *mut [MaybeUninit<f32>]) };
        // SAFETY: all of it is set.
        unsafe { self.add(windows, out, out_stride) }
    }

    /// The product of every block of rows, one after the other, in rows of `n`.
    pub fn windows(self, windows: Windows) -> Vec<f32> {
        let length = windows.count * windows.rows * self.shape.2;
        let (mut out, n) = (Vec::with_capacity(length), self.shape.2);
        self.fill(Windows { out: windows.rows * n, ..windows }, &mut out.spare_capacity_mut()[..length], n);
        // SAFETY: the blocks are all of it.
        unsafe { out.set_len(length) };
        out
    }

    /// # Safety
    /// Where the product begins with what the output holds, the blocks' rows of `out` are set.
    pub unsafe fn add(self, windows: Windows, out: &mut [MaybeUninit<f32>], out_stride: usize) {
        let (_, k, n) = self.shape;
        let Windows { count, rows, a, out: out_step } = windows;
        if count == 0 || rows == 0 || n == 0 {
            return;
        }
        assert!(n <= out_stride && (count - 1) * out_step + (rows - 1) * out_stride + n <= out.len());
        assert!(count == 1 || rows * out_stride <= out_step);
        let of = |index: usize| View { data: &self.a.data[index * a..], ..self.a };
        assert!(k > 0 && of(count - 1).fits(rows, k) && self.b.fits(k, n));
        assert!(!matches!(self.start, Start::Row(row) if row.len() != n));
        let memory = Memory(out.as_mut_ptr().cast());
        let product = Product { shape: (rows, k, n), ..self };
        if count > 1 && !super::amx::takes(&product) && super::avx512::takes(&product) {
            // SAFETY: the assertions keep every element in its slice, and every block's rows in the output.
            return unsafe { super::avx512::multiply_windows(&product, windows, memory.from(0), out_stride) };
        }
        let block = |index: usize, threads: Threads| {
            // SAFETY: the assertions keep every block's rows in the output, each apart from the others.
            unsafe { Product { a: of(index), threads, ..product }.write(memory.from(index * out_step), out_stride) }
        };
        match (count, self.threads) {
            (1, _) | (_, Threads::One) => (0..count).for_each(|index| block(index, self.threads)),
            _ => (0..count).into_par_iter().with_max_len(1).for_each(|index| block(index, Threads::All)),
        }
    }

    /// Writes the product to `out`, whose rows are `out_stride` apart.
    pub fn into(self, out: &mut [f32], out_stride: usize) {
        let (m, _, n) = self.shape;
        assert!(m == 0 || n == 0 || (n <= out_stride && (m - 1) * out_stride + n <= out.len()));
        // SAFETY: the assertion keeps every element of the output in its slice.
        unsafe { self.write(out.as_mut_ptr(), out_stride) }
    }

    /// The product in rows of `n`, not added to any output.
    pub fn values(self) -> Vec<f32> {
        let (m, _, n) = self.shape;
        assert!(!matches!(self.start, Start::Output));
        let mut out = Vec::with_capacity(m * n);
        // SAFETY: every element is written, none read before.
        unsafe {
            self.write(out.as_mut_ptr(), n);
            out.set_len(m * n);
        }
        out
    }

    /// # Safety
    /// `out` points to `m` rows of `n` values, `out_stride` apart, that no one else uses.
    unsafe fn write(self, out: *mut f32, out_stride: usize) {
        let (m, k, n) = self.shape;
        if m == 0 || n == 0 {
            return;
        }
        assert!(k > 0 && self.a.fits(m, k) && self.b.fits(k, n));
        assert!(!matches!(self.start, Start::Row(row) if row.len() != n));
        if super::amx::takes(&self) {
            // SAFETY: the assertions keep every element in its slice; `out` as the caller says.
            return unsafe { super::amx::multiply(&self, out, out_stride) };
        }
        if super::avx512::takes(&self) {
            // SAFETY: as above.
            return unsafe { super::avx512::multiply(&self, out, out_stride) };
        }
        if let Start::Row(row) = self.start {
            for i in 0..m {
                // SAFETY: a row of `out` has `n` values, as `row` has.
                unsafe { out.add(i * out_stride).copy_from_nonoverlapping(row.as_ptr(), n) };
            }
        }
        let parallelism = match self.threads {
            Threads::One => gemm::Parallelism::None,
            Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
        };
        // SAFETY: as above; where it does not add, the output is not read.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out,
                1,
                out_stride as isize,
                !matches!(self.start, Start::Zero),
                self.a.data.as_ptr(),
                self.a.column_stride as isize,
                self.a.row_stride as isize,
                self.b.data.as_ptr(),
                self.b.column_stride as isize,
                self.b.row_stride as isize,
                1.0,
                self.scale,
                false,
                false,
                false,
                parallelism,
            )
        }
    }
}

/// Values that a task takes of a vector loop's rows.
pub const TASK: usize = 16384;

/// `for_each_row!(out, width, |r, row| work)` does `work` for every row of `width` elements, on all threads; a last one may
/// be shorter.
macro_rules! for_each_row {
    ($out:expr, $width:expr, |$r:pat_param, $row:pat_param| $work:expr) => {{
        let out: &mut [f32] = $out;
        $crate::ops::kernels::cpu::rows_of!(out, $width, |values| values, |$r, $row| $work)
    }};
}
pub(crate) use for_each_row;

/// `new_rows!(length, width, |r, row| work)`: as many values, of which `work` gets every row of `width`, full of zeros.
macro_rules! new_rows {
    ($length:expr, $width:expr, |$r:pat_param, $row:pat_param| $work:expr) => {{
        let length: usize = $length;
        let mut out: Vec<f32> = Vec::with_capacity(length);
        let unset = &mut out.spare_capacity_mut()[..length];
        $crate::ops::kernels::cpu::rows_of!(unset, $width, $crate::ops::kernels::cpu::zeros, |$r, $row| $work);
        // SAFETY: the tasks have written all of it.
        unsafe { out.set_len(length) };
        out
    }};
}
pub(crate) use new_rows;

/// The loop of both: `prepare` makes a task's values what they are to be.
macro_rules! rows_of {
    ($out:expr, $width:expr, $prepare:expr, |$r:pat_param, $row:pat_param| $work:expr) => {{
        use rayon::prelude::*;
        let width: usize = $width;
        let rows_a_task = ($crate::ops::kernels::cpu::TASK / width.max(1)).max(1);
        $out.par_chunks_mut(width * rows_a_task).enumerate().for_each(|(task, values)| {
            let values: &mut [f32] = $prepare(values);
            $crate::system::vectors::vectorised!({
                for (i, row) in values.chunks_mut(width).enumerate() {
                    let ($r, $row) = (task * rows_a_task + i, row);
                    $work
                }
            })
        });
    }};
}
pub(crate) use rows_of;

/// Sets all of `values` to zero.
pub fn zeros(values: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    values.fill(MaybeUninit::new(0.0));
    // SAFETY: they have just been set.
    unsafe { &mut *(values as *mut [MaybeUninit<f32>] as *mut [f32]) }
}

/// Running sums that a vector loop keeps.
const LANES: usize = 16;

/// Sum over `f(i)` for `i` in `0..n`, in a fixed order that vector units can follow.
#[inline(always)]
pub fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(i + lane);
        }
        i += LANES;
    }
    for i in whole..n {
        lanes[i - whole] += f(i);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// Several such sums in one pass.
#[inline(always)]
pub fn sums<const N: usize>(n: usize, f: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0f32; LANES]; N];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for lane in 0..LANES {
            let values = f(i + lane);
            for (lanes, value) in lanes.iter_mut().zip(values) {
                lanes[lane] += value;
            }
        }
        i += LANES;
    }
    for i in whole..n {
        for (lanes, value) in lanes.iter_mut().zip(f(i)) {
            lanes[i - whole] += value;
        }
    }
    lanes.map(|lanes| sum(LANES, |lane| lanes[lane]))
}

/// The largest value, in the same lanes as [`sum`]; negative infinity for none.
#[inline(always)]
pub fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let largest = |a: f32, b: &f32| if *b > a { *b } else { a };
    rest.iter().fold(lanes.iter().fold(f32::NEG_INFINITY, largest), largest)
}

/// e^x to within 2 units in the last place, without branches (Cephes' `expf`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_375, x));
    let p = 1.987_569_15e-4f32;
    let p = p.mul_add(r, 1.398_199_95e-3);
    let p = p.mul_add(r, 8.333_451_9e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_55e-1);
    let p = p.mul_add(r, 5.000_000_12e-1);
    let p = p.mul_add(r * r, r) + 1.0;
    times_power(p, shifted)
}

/// 2^x to within 2 units in the last place for x below 127, without branches (Cephes' `exp2f`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn exp2(x: f32) -> f32 {
    // No `max`, which would make a number of what is none.
    let x = if x < -126.0 { -126.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let p = 1.535_336_188e-4f32;
    let p = p.mul_add(r, 1.339_887_440e-3);
    let p = p.mul_add(r, 9.618_437_357e-3);
    let p = p.mul_add(r, 5.550_332_471e-2);
    let p = p.mul_add(r, 2.402_264_791e-1);
    let p = p.mul_add(r, 6.931_472_028e-1);
    times_power(p.mul_add(r, 1.0), shifted)
}

/// 1.5 · 2^23: adding it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `p` times 2 to the integer in the low bits of `shifted`.
#[inline(always)]
fn times_power(p: f32, shifted: f32) -> f32 {
    let bits = (shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits());
    p * f32::from_bits(bits)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Values to powers of two of their distances to the largest; returns that and the powers' sum.
#[inline(always)]
pub fn powers_of_two(row: &mut [f32]) -> (f32, f32) {
    let largest = maximum(row);
    let mut lanes = [0f32; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for chunk in whole {
        for (value, lane) in chunk.iter_mut().zip(&mut lanes) {
            *value = exp2(*value - largest);
            *lane += *value;
        }
    }
    for (value, lane) in rest.iter_mut().zip(&mut lanes) {
        *value = exp2(*value - largest);
        *lane += *value;
    }
    (largest, sum(LANES, |lane| lanes[lane]))
}

/// Softmax of a row in place, of scores in units of log 2.
#[inline(always)]
pub fn softmax(row: &mut [f32]) {
    let (_, sum) = powers_of_two(row);
    let inverse = 1.0 / sum;
    for value in row.iter_mut() {
        *value *= inverse;
    }
}
