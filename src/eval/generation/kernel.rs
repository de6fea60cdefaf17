//! Kernel inception distance: the unbiased squared maximum mean discrepancy under the kernel `(x·y/length + 1)³`.
use super::matrix::add_product;
use crate::sample::noise::generator;
use crate::system::error::{Error, Result};
use faer::MatRef;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// clean-fid's and torch-fidelity's numbers.
const SUBSETS: usize = 100;
const SUBSET: usize = 1000;
/// Vectors that are kept at most: 80 MB a set at 2048 elements.
const MOST_VECTORS: usize = 10_000;
/// First elements of the streams of random numbers: which vectors are kept, and which of those are in a subset.
const KEEPING: u64 = 0;
const CHOOSING: u64 = 1;

/// A bounded random sample of a stream of feature vectors: all of them up to `MOST_VECTORS`.
#[derive(Clone, Debug)]
pub struct VectorSample {
    length: usize,
    vectors: Vec<f32>,
    seen: usize,
}

impl VectorSample {
    /// Of no vectors yet; vectors have `length` elements.
    pub fn new(length: usize) -> Self {
        Self { length, vectors: Vec::new(), seen: 0 }
    }

    /// Takes in some vectors, one after the other in `vectors`: each of those seen so far is kept with the same
    /// probability (Vitter's algorithm R).
    pub fn add(&mut self, vectors: &[f32]) {
        for vector in vectors.chunks_exact(self.length.max(1)) {
            self.seen += 1;
            if self.count() < MOST_VECTORS {
                self.vectors.extend_from_slice(vector);
                continue;
            }
            let place = generator(0, &[KEEPING, self.seen as u64]).random_range(0..self.seen);
            if place < MOST_VECTORS {
                self.vectors[place * self.length..][..self.length].copy_from_slice(vector);
            }
        }
    }

    fn count(&self) -> usize {
        self.vectors.len() / self.length.max(1)
    }

    /// The vectors of these numbers, in f64.
    fn choose(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<f64> {
        let vectors = numbers.into_iter().flat_map(|number| &self.vectors[number * self.length..][..self.length]);
        vectors.map(|value| f64::from(*value)).collect()
    }
}

/// The distance between two samples.
///
/// Of up to 1000 vectors a side all are compared with all. Of more, it is the mean over 100 pairs of random subsets of
/// 1000 vectors (fewer where a side has fewer), as in clean-fid and torch-fidelity; always the same subsets.
///
/// # Errors
/// When the samples have different lengths, or one fewer than two vectors.
pub fn kernel_distance(a: &VectorSample, b: &VectorSample) -> Result<f64> {
    if a.length != b.length {
        return Err(Error::Failed(format!("features of length {} against features of length {}", a.length, b.length)));
    }
    let (smaller, larger) = (a.count().min(b.count()), a.count().max(b.count()));
    if smaller < 2 {
        return Err(Error::Failed(format!("a kernel distance needs 2 images at least, there are {smaller}")));
    }
    if larger <= SUBSET {
        return Ok(discrepancy(&a.choose(0..a.count()), &b.choose(0..b.count()), a.length));
    }
    let size = smaller.min(SUBSET);
    let distances = (0..SUBSETS).map(|subset| {
        let mut generator = generator(0, &[CHOOSING, subset as u64]);
        let mut choose = |sample: &VectorSample| sample.choose(distinct(size, sample.count(), &mut generator));
        let (a_subset, b_subset) = (choose(a), choose(b));
        discrepancy(&a_subset, &b_subset, a.length)
    });
    Ok(distances.sum::<f64>() / SUBSETS as f64)
}

/// `count` different numbers below `end`, each set of them equally likely.
fn distinct(count: usize, end: usize, generator: &mut ChaCha8Rng) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..end).collect();
    for place in 0..count {
        numbers.swap(place, generator.random_range(place..end));
    }
    numbers.truncate(count);
    numbers
}

/// Over all pairs; those of a vector with itself are left out.
fn discrepancy(a: &[f64], b: &[f64], length: usize) -> f64 {
    let (m, n) = ((a.len() / length) as f64, (b.len() / length) as f64);
    let mean_of_pairs = |vectors: &[f64], count: f64| {
        let (all, diagonal) = kernel_sums(vectors, vectors, length);
        (all - diagonal) / (count * (count - 1.0))
    };
    mean_of_pairs(a, m) + mean_of_pairs(b, n) - 2.0 * kernel_sums(a, b, length).0 / (m * n)
}

/// The sums of the kernel over all pairs, and over those of vectors with equal numbers.
fn kernel_sums(a: &[f64], b: &[f64], length: usize) -> (f64, f64) {
    let (m, n) = (a.len() / length, b.len() / length);
    let mut products = vec![0f64; m * n];
    let (a, b) = (MatRef::from_row_major_slice(a, m, length), MatRef::from_row_major_slice(b, n, length));
    add_product(&mut products, a, b.transpose());
    let kernel = |product: f64| (product / length as f64 + 1.0).powi(3);
    let all = products.chunks_exact(n).map(|row| row.iter().map(|product| kernel(*product)).sum::<f64>()).sum();
    (all, products.iter().step_by(n + 1).map(|product| kernel(*product)).sum())
}
