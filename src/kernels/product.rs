//! Matrix products on the units that a machine has.
use super::matrix::{Memory, Product, Start, Threads, View, Windows};
use super::{amx, avx512};
use rayon::prelude::*;
use std::mem::MaybeUninit;

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
        let is_on_amx = amx::takes(&product);
        if !is_on_amx && avx512::takes(&product) {
            // SAFETY: the assertions keep every element in its slice, and every block's rows in the output.
            return unsafe { avx512::multiply_windows(&product, windows, memory.from(0), out_stride) };
        }
        let block = |index: usize, threads: Threads| {
            let product = Product { a: of(index), threads, ..product };
            let out = memory.from(index * out_step);
            // SAFETY: as above; each block's rows are apart from the others'.
            unsafe {
                match is_on_amx {
                    true => amx::multiply(&product, out, out_stride),
                    false => product.write_by_gemm(out, out_stride),
                }
            }
        };
        match (count, self.threads) {
            (1, _) | (_, Threads::One) => (0..count).for_each(|index| block(index, self.threads)),
            _ => (0..count).into_par_iter().with_max_len(1).for_each(|index| block(index, Threads::All)),
        }
    }

    /// Writes the product to `out`, whose rows are `out_stride` apart.
    pub fn into(self, out: &mut [f32], out_stride: usize) {
        self.into_windows(Windows::one(self.shape.0), out, out_stride);
    }

    /// The product in rows of `n`, not added to any output.
    pub fn values(self) -> Vec<f32> {
        self.windows(Windows::one(self.shape.0))
    }

    /// Computes the product by the crate `gemm`, which every machine has.
    ///
    /// # Safety
    /// The views lie inside their slices, a starting row has `n` values, and `out` points to `m` rows of `n` values,
    /// `out_stride` apart, that no one else uses, set where the product begins with them.
    pub unsafe fn write_by_gemm(self, out: *mut f32, out_stride: usize) {
        let (m, k, n) = self.shape;
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
        // SAFETY: the caller's promise; where it does not add, the output is not read.
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
