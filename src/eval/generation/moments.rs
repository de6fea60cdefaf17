//! Mean and covariance of feature vectors, gathered a batch at a time in f64.
use super::matrix::{add_product, factor};
use crate::system::error::{Error, Result};
use faer::MatRef;

/// A normal distribution in feature space: what the Fréchet distance compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// Mean, `[features]`.
    pub mean: Vec<f64>,
    /// `[length, length]`.
    pub covariance: Vec<f64>,
}

/// How far a covariance may be from one, as a share of its trace: that of f32 numbers is off by less.
const ROUNDING: f64 = 1e-5;

impl Gaussian {
    /// Checks that mean and covariance are those of some distribution: finite, symmetric, without negative eigenvalues.
    ///
    /// # Errors
    /// Says what they are not.
    pub fn check(&self) -> Result<(), String> {
        let (length, matrix) = (self.mean.len(), self.covariance.as_slice());
        if matrix.len() != length * length {
            return Err(format!("{} numbers of covariance for features of length {length}", matrix.len()));
        }
        let trace: f64 = (0..length).map(|i| matrix[i * (length + 1)]).sum();
        // The squares must be finite, too.
        let size = self.mean.iter().chain(matrix).map(|value| value * value).sum::<f64>();
        if !size.is_finite() {
            return Err("mu or sigma has values that are not finite, or too large".into());
        }
        let norm = |difference: &dyn Fn(usize, usize) -> f64| {
            let squares = (0..length * length).map(|at| difference(at / length, at % length).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let asymmetry = norm(&|row, column| matrix[row * length + column] - matrix[column * length + row]);
        let rounding = ROUNDING * trace.abs();
        if asymmetry > rounding {
            return Err("sigma is not symmetric: no covariance".into());
        }
        // A factor times itself has no negative eigenvalue: what it leaves of the matrix is at least as large as these.
        let mut product = vec![0f64; length * length];
        match factor(MatRef::from_row_major_slice(matrix, length, length)) {
            Some(factor) => add_product(&mut product, factor.as_ref(), factor.transpose()),
            None => product.fill(f64::NAN),
        }
        // NaN, where a factor of what is no covariance overflows, is not less either.
        match norm(&|row, column| matrix[row * length + column] - product[row * length + column]) <= rounding {
            true => Ok(()),
            false => Err("sigma has negative eigenvalues: no covariance".into()),
        }
    }
}

/// Mean and scatter of the vectors so far.
#[derive(Clone, Debug)]
pub struct Moments {
    count: usize,
    mean: Vec<f64>,
    /// Sum of the products of deviations from the mean, `[length, length]`.
    scatter: Vec<f64>,
}

impl Moments {
    /// Of no vectors yet; vectors have `length` elements.
    pub fn new(length: usize) -> Self {
        Self { count: 0, mean: vec![0.0; length], scatter: vec![0.0; length * length] }
    }

    /// Takes in some vectors, one after the other in `vectors`.
    ///
    /// Deviations are from the batch's own mean, and the two means' difference is one more deviation (Chan, Golub and
    /// LeVeque 1979): no large numbers are subtracted from each other.
    pub fn add(&mut self, vectors: &[f32]) {
        let length = self.mean.len();
        let batch = vectors.len() / length.max(1);
        if batch == 0 {
            return;
        }
        let mut batch_mean = vec![0f64; length];
        for vector in vectors.chunks_exact(length) {
            batch_mean.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        batch_mean.iter_mut().for_each(|sum| *sum /= batch as f64);
        let (before, after) = (self.count as f64, (self.count + batch) as f64);
        let mut deviations = Vec::with_capacity((batch + 1) * length);
        for vector in vectors.chunks_exact(length) {
            deviations.extend(vector.iter().zip(&batch_mean).map(|(value, mean)| f64::from(*value) - mean));
        }
        let weight = (before * batch as f64 / after).sqrt();
        deviations.extend(batch_mean.iter().zip(&self.mean).map(|(new, old)| (new - old) * weight));
        let deviations = MatRef::from_row_major_slice(&deviations, batch + 1, length);
        add_product(&mut self.scatter, deviations.transpose(), deviations);
        for (mean, new) in self.mean.iter_mut().zip(&batch_mean) {
            *mean += (new - *mean) * batch as f64 / after;
        }
        self.count += batch;
    }

    /// How many vectors there were.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Mean and unbiased covariance, as `numpy.cov` has it.
    ///
    /// # Errors
    /// Of fewer than two vectors there is no covariance.
    pub fn gaussian(&self) -> Result<Gaussian> {
        if self.count < 2 {
            return Err(Error::Failed(format!("a covariance needs 2 images at least, there are {}", self.count)));
        }
        let less_one = (self.count - 1) as f64;
        Ok(Gaussian { mean: self.mean.clone(), covariance: self.scatter.iter().map(|sum| sum / less_one).collect() })
    }
}
