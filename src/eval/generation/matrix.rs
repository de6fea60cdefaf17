//! Dense matrices in f64, in rows: products, a factor of a covariance, singular values. Work is cut the same way
//! whatever the number of threads.
use crate::system::error::{Error, Result};
use crate::system::vectors::vectorised;
use rayon::prelude::*;

/// Rows that are one task.
const ROWS: usize = 64;

/// A matrix as a product takes it: element (i, j) at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f64],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `width` elements, one after the other.
    pub fn rows(data: &'a [f64], width: usize) -> Self {
        Self { data, row_stride: width, column_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Self { data: self.data, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    fn fits(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// `out += a·b`, with `a` `[m, k]`, `b` `[k, n]` and `out` `[m, n]`.
pub fn add_product(out: &mut [f64], (m, k, n): (usize, usize, usize), a: View, b: View) {
    assert!(out.len() == m * n && a.fits(m, k) && b.fits(k, n));
    if out.is_empty() || k == 0 {
        return;
    }
    out.par_chunks_mut(ROWS * n).enumerate().for_each(|(task, out)| {
        // SAFETY: the assertion above keeps every element that the rows of this task need inside its slice.
        unsafe {
            gemm::gemm(
                out.len() / n,
                n,
                k,
                out.as_mut_ptr(),
                1,
                n as isize,
                true,
                a.data.as_ptr().add(task * ROWS * a.row_stride),
                a.column_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            )
        }
    });
}

/// `L` `[size, rank]` with `L·Lᵀ` the symmetric positive semidefinite `matrix` `[size, size]`, singular or not: Cholesky's
/// factor with the largest pivot first, until what is left is rounding (LAPACK: `dpstrf`).
///
/// Returns `L` and its rank.
pub fn factor(matrix: &[f64], size: usize) -> (Vec<f64>, usize) {
    let mut left: Vec<f64> = (0..size).map(|i| matrix[i * size + i]).collect();
    let largest = left.iter().copied().fold(0.0, f64::max);
    let tolerance = size as f64 * f64::EPSILON * largest;
    let mut factor = vec![0f64; size * size];
    let mut rank = 0;
    while rank < size {
        let (pivot, &value) = match left.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) {
            Some(found) if *found.1 > tolerance => found,
            _ => break,
        };
        let root = value.sqrt();
        let of_pivot = factor[pivot * size..][..rank].to_vec();
        // Taken rows have nothing left and stay 0 from here on.
        let rows = factor.par_chunks_mut(size * ROWS).zip(left.par_chunks_mut(ROWS)).enumerate();
        rows.for_each(|(task, (rows, left))| {
            vectorised!({
                for (i, (row, left)) in rows.chunks_exact_mut(size).zip(left).enumerate() {
                    if *left > f64::NEG_INFINITY {
                        let entry = matrix[(task * ROWS + i) * size + pivot] - dot(&row[..rank], &of_pivot);
                        row[rank] = entry / root;
                        *left -= row[rank] * row[rank];
                    }
                }
            })
        });
        factor[pivot * size + rank] = root;
        left[pivot] = f64::NEG_INFINITY;
        rank += 1;
    }
    let kept = factor.chunks_exact(size.max(1)).flat_map(|row| &row[..rank]).copied().collect();
    (kept, rank)
}

/// The sum of the singular values of `matrix` `[rows, columns]`.
///
/// # Errors
/// When it holds values that are not finite.
pub fn nuclear_norm(matrix: Vec<f64>, rows: usize, columns: usize) -> Result<f64> {
    if rows < columns {
        let transposed = (0..rows * columns).map(|i| matrix[i % rows * columns + i / rows]).collect();
        return nuclear_norm(transposed, columns, rows);
    }
    let (diagonal, above) = bidiagonal(matrix, columns);
    // The eigenvalues of [[0, B], [Bᵀ, 0]] are the singular values of B and their negatives; with rows and columns
    // interleaved it is tridiagonal, with nothing on the diagonal (Golub and Kahan).
    let beside = diagonal.into_iter().zip(above).flat_map(|(d, e)| [d, e]).collect();
    let values = tridiagonal_eigenvalues(vec![0.0; 2 * columns], beside)?;
    Ok(values.into_iter().filter(|value| *value > 0.0).sum())
}

/// Diagonal and superdiagonal (with a 0 after it) of a bidiagonal matrix that has the singular values of `matrix`
/// `[rows, columns]`, of which there are at least as many rows; by Householder reflections (Golub and Van Loan, 5.4.8).
fn bidiagonal(mut matrix: Vec<f64>, columns: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut diagonal, mut above) = (vec![0.0; columns], vec![0.0; columns]);
    for step in 0..columns {
        let (done, open) = matrix.split_at_mut((step + 1) * columns);
        let pivot_row = &mut done[step * columns..];
        let column = pivot_row.iter().skip(step).step_by(columns).chain(open.iter().skip(step).step_by(columns));
        let mut left: Vec<f64> = column.copied().collect();
        let left_scale = reflection(&mut left, &mut diagonal[step]);
        let row_sum = combine(&left, pivot_row, open, columns, step + 1);
        let trailing = &mut pivot_row[step + 1..];
        subtract(trailing, &row_sum, left_scale * left[0]);
        let mut right = trailing.to_vec();
        let right_scale = reflection(&mut right, &mut above[step]);
        // Both reflections of a row in one go: the right one needs nothing of other rows.
        let rows = open.par_chunks_mut(ROWS * columns).zip(left[1..].par_chunks(ROWS));
        rows.for_each(|(rows, left)| {
            vectorised!({
                for (row, left) in rows.chunks_exact_mut(columns).zip(left) {
                    let row = &mut row[step + 1..];
                    subtract(row, &row_sum, left_scale * left);
                    let along = dot(row, &right);
                    subtract(row, &right, right_scale * along);
                }
            })
        });
    }
    (diagonal, above)
}

/// Turns `vector` into `v` of the reflection `1 − scale·v·vᵀ` that maps it onto its first axis, where it is `length`.
/// Returns the scale.
fn reflection(vector: &mut [f64], length: &mut f64) -> f64 {
    let norm = dot(vector, vector).sqrt();
    let Some(first) = vector.first_mut() else { return 0.0 };
    *length = -norm.copysign(*first);
    *first -= *length;
    let square = dot(vector, vector);
    if square == 0.0 { 0.0 } else { 2.0 / square }
}

/// Columns from `first` on of the rows' sum, each row times its weight; the first weight is that of `pivot_row`.
fn combine(weights: &[f64], pivot_row: &[f64], rows: &[f64], columns: usize, first: usize) -> Vec<f64> {
    let tasks = rows.par_chunks(ROWS * columns).zip(weights[1..].par_chunks(ROWS));
    let parts: Vec<Vec<f64>> = tasks
        .map(|(rows, weights)| {
            let mut sum = vec![0f64; columns - first];
            vectorised!({
                for (row, weight) in rows.chunks_exact(columns).zip(weights) {
                    subtract(&mut sum, &row[first..], -weight);
                }
            });
            sum
        })
        .collect();
    let mut sum: Vec<f64> = pivot_row[first..].iter().map(|value| value * weights[0]).collect();
    parts.iter().for_each(|part| subtract(&mut sum, part, -1.0));
    sum
}

/// Eigenvalues of the symmetric tridiagonal matrix with this `diagonal` and, right of and below each element of it,
/// `beside` (the last has no meaning): QL with implicit shifts (EISPACK: `imtql1`).
fn tridiagonal_eigenvalues(mut diagonal: Vec<f64>, mut beside: Vec<f64>) -> Result<Vec<f64>> {
    /// Two an eigenvalue are usual.
    const MOST_ROUNDS: usize = 60;
    let size = diagonal.len();
    let norm = diagonal.iter().chain(&beside).fold(0f64, |largest, value| largest.max(value.abs()));
    let finite = diagonal.iter().chain(&beside).all(|value| value.is_finite());
    for first in 0..size {
        for round in 0.. {
            let split = (first..size - 1).find(|i| beside[*i].abs() <= f64::EPSILON * norm).unwrap_or(size - 1);
            if split == first {
                break;
            }
            if !finite || round == MOST_ROUNDS {
                return Err(Error::Failed("a matrix of features has no singular values: it is not finite".into()));
            }
            ql_step(&mut diagonal, &mut beside, first, split);
        }
    }
    Ok(diagonal)
}

/// One sweep from `last` up to `first`, between which no element of `beside` is 0.
fn ql_step(diagonal: &mut [f64], beside: &mut [f64], first: usize, last: usize) {
    let shift = (diagonal[first + 1] - diagonal[first]) / (2.0 * beside[first]);
    let root = shift.hypot(1.0).copysign(shift);
    let mut along = diagonal[last] - diagonal[first] + beside[first] / (shift + root);
    let (mut sine, mut cosine, mut carried) = (1.0, 1.0, 0.0);
    for i in (first..last).rev() {
        let (across, kept) = (sine * beside[i], cosine * beside[i]);
        let length = across.hypot(along);
        beside[i + 1] = length;
        if length == 0.0 {
            // It has come apart by itself.
            diagonal[i + 1] -= carried;
            beside[last] = 0.0;
            return;
        }
        (sine, cosine) = (across / length, along / length);
        let here = diagonal[i + 1] - carried;
        let turned = (diagonal[i] - here) * sine + 2.0 * cosine * kept;
        carried = sine * turned;
        diagonal[i + 1] = here + carried;
        along = cosine * turned - kept;
    }
    diagonal[first] -= carried;
    beside[first] = along;
    beside[last] = 0.0;
}

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 16;
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut lanes = [0f64; LANES];
    for (a, b) in a.zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// `row -= scale · other`.
#[inline(always)]
fn subtract(row: &mut [f64], other: &[f64], scale: f64) {
    row.iter_mut().zip(other).for_each(|(value, other)| *value -= scale * other);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    fn random(rows: usize, columns: usize) -> Vec<f64> {
        let mut generator = crate::sample::noise::generator(3, &[rows as u64, columns as u64]);
        (0..rows * columns).map(|_| generator.random_range(-1.0..1.0)).collect()
    }

    fn product(a: View, b: View, shape: (usize, usize, usize)) -> Vec<f64> {
        let mut out = vec![0.0; shape.0 * shape.2];
        add_product(&mut out, shape, a, b);
        out
    }

    #[test]
    fn factors_give_the_matrix_back_at_any_rank() {
        for (size, rank) in [(1, 1), (5, 2), (40, 40), (150, 70), (6, 0)] {
            let root = random(size, rank);
            let matrix = product(View::rows(&root, rank), View::rows(&root, rank).transposed(), (size, rank, size));
            let (factor, found) = factor(&matrix, size);
            assert_eq!(found, rank);
            let again = product(View::rows(&factor, rank), View::rows(&factor, rank).transposed(), (size, rank, size));
            let off = matrix.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-12, "{size} of rank {rank}: {off}");
        }
    }

    #[test]
    fn nuclear_norms_are_right() {
        // A diagonal matrix with both signs, one of equal values, one of rank 1, and an empty one.
        let norm = |matrix: &[f64], rows, columns| nuclear_norm(matrix.to_vec(), rows, columns).unwrap();
        assert!((norm(&[3.0, 0.0, 0.0, -4.0, 0.0, 0.0], 3, 2) - 7.0).abs() < 1e-14);
        assert!((norm(&[0.0, 1.0, 1.0, 0.0], 2, 2) - 2.0).abs() < 1e-14);
        assert!((norm(&[1.0, 2.0, 3.0, 2.0, 4.0, 6.0], 2, 3) - 70f64.sqrt()).abs() < 1e-13);
        assert_eq!(norm(&[], 4, 0), 0.0);
        assert_eq!(norm(&[0.0; 12], 4, 3), 0.0);
        assert!(nuclear_norm(vec![1.0, f64::NAN, 0.0, 1.0], 2, 2).is_err());
        // Of a symmetric positive matrix it is the trace.
        let root = random(130, 130);
        let gram = product(View::rows(&root, 130).transposed(), View::rows(&root, 130), (130, 130, 130));
        let trace: f64 = (0..130).map(|i| gram[i * 131]).sum();
        assert!((norm(&gram, 130, 130) - trace).abs() < 1e-11 * trace);
    }
}
