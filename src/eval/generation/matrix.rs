//! Dense matrices in f64, by faer: products, a factor of a covariance, singular values. Each task is one thread's, and
//! tasks are cut alike on any number of threads: the number of threads changes no bit.
use crate::system::error::{Error, Result};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows that are one task.
const ROWS: usize = 64;

/// `out += a·b`, with `a` `[m, k]`, `b` `[k, n]` and `out` `[m, n]` by rows.
pub fn add_product(out: &mut [f64], a: MatRef<f64>, b: MatRef<f64>) {
    let columns = b.ncols();
    assert_eq!(out.len(), a.nrows() * columns);
    out.par_chunks_mut((ROWS * columns).max(1)).enumerate().for_each(|(task, out)| {
        let rows = out.len() / columns;
        let out = MatMut::from_row_major_slice_mut(out, rows, columns);
        matmul(out, Accum::Add, a.subrows(task * ROWS, rows), b, 1.0, Par::Seq);
    });
}

/// `L` `[size, rank]` with `L·Lᵀ` the symmetric positive semidefinite `matrix`, singular or not: Cholesky's factor with
/// the largest pivot first, until what is left is rounding (LAPACK: `dpstrf`).
///
/// None where numbers overflow.
pub fn factor(matrix: MatRef<f64>) -> Option<Mat<f64>> {
    let size = matrix.nrows();
    let mut factor = matrix.to_owned();
    // A variance of 0 that was rounded to less, which faer refuses.
    (0..size).for_each(|i| factor[(i, i)] = factor[(i, i)].max(0.0));
    // faer looks at no pivot before it divides by the first.
    if factor.diagonal().column_vector().iter().all(|pivot| *pivot == 0.0) {
        return Some(Mat::zeros(size, 0));
    }
    let (mut order, mut inverse) = (vec![0usize; size], vec![0usize; size]);
    let mut scratch = MemBuffer::new(cholesky_in_place_scratch::<usize, f64>(size, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut scratch);
    let (found, _) =
        cholesky_in_place(factor.as_mut(), &mut order, &mut inverse, Par::Seq, stack, Default::default()).ok()?;
    // Rows of the lower triangle are in the order of the pivots.
    let entry = |row: usize, column: usize| if inverse[row] < column { 0.0 } else { factor[(inverse[row], column)] };
    Some(Mat::from_fn(size, found.rank, entry))
}

/// The sum of the singular values of `matrix`.
///
/// # Errors
/// When it holds values that are not finite.
pub fn nuclear_norm(matrix: MatRef<f64>) -> Result<f64> {
    let not_finite = || Error::Failed("a matrix of features has no singular values: it is not finite".into());
    if !matrix.is_all_finite() {
        return Err(not_finite());
    }
    Ok(matrix.singular_values().map_err(|_| not_finite())?.into_iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    fn random(rows: usize, columns: usize) -> Vec<f64> {
        let mut generator = crate::sample::noise::generator(3, &[rows as u64, columns as u64]);
        (0..rows * columns).map(|_| generator.random_range(-1.0..1.0)).collect()
    }

    fn product(a: MatRef<f64>, b: MatRef<f64>) -> Vec<f64> {
        let mut out = vec![0.0; a.nrows() * b.ncols()];
        add_product(&mut out, a, b);
        out
    }

    #[test]
    fn factors_give_the_matrix_back_at_any_rank() {
        for (size, rank) in [(1, 1), (5, 2), (40, 40), (150, 70), (6, 0)] {
            let root = random(size, rank);
            let root = MatRef::from_row_major_slice(&root, size, rank);
            let matrix = product(root, root.transpose());
            let factor = factor(MatRef::from_row_major_slice(&matrix, size, size)).unwrap();
            assert_eq!(factor.ncols(), rank);
            let again = product(factor.as_ref(), factor.transpose());
            let off = matrix.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-12, "{size} of rank {rank}: {off}");
        }
    }

    #[test]
    fn nuclear_norms_are_right() {
        // A diagonal matrix with both signs, one of equal values, one of rank 1, and an empty one.
        let norm =
            |matrix: &[f64], rows, columns| nuclear_norm(MatRef::from_row_major_slice(matrix, rows, columns)).unwrap();
        assert!((norm(&[3.0, 0.0, 0.0, -4.0, 0.0, 0.0], 3, 2) - 7.0).abs() < 1e-14);
        assert!((norm(&[0.0, 1.0, 1.0, 0.0], 2, 2) - 2.0).abs() < 1e-14);
        assert!((norm(&[1.0, 2.0, 3.0, 2.0, 4.0, 6.0], 2, 3) - 70f64.sqrt()).abs() < 1e-13);
        assert_eq!(norm(&[], 4, 0), 0.0);
        assert_eq!(norm(&[0.0; 12], 4, 3), 0.0);
        assert!(nuclear_norm(MatRef::from_row_major_slice(&[1.0, f64::NAN, 0.0, 1.0], 2, 2)).is_err());
        // Of a symmetric positive matrix it is the trace.
        let root = random(130, 130);
        let root = MatRef::from_row_major_slice(&root, 130, 130);
        let gram = product(root.transpose(), root);
        let trace: f64 = (0..130).map(|i| gram[i * 131]).sum();
        assert!((norm(&gram, 130, 130) - trace).abs() < 1e-11 * trace);
    }

    /// Large enough that faer would use several threads, if it were let.
    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (rows, columns) = (700, 600);
        let root = random(rows, columns);
        let root = MatRef::from_row_major_slice(&root, rows, columns);
        let on_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let gram = product(root, root.transpose());
                let factor = factor(MatRef::from_row_major_slice(&gram, rows, rows)).unwrap();
                let norm = nuclear_norm(factor.as_ref()).unwrap();
                (gram, factor, norm.to_bits())
            })
        };
        let one = on_threads(1);
        assert_eq!(one.1.ncols(), columns);
        for threads in [2, 3, 8] {
            assert!(on_threads(threads) == one, "{threads} threads");
        }
    }
}
