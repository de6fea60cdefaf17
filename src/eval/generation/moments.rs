//! Mean and covariance of feature vectors, gathered a batch at a time in f64.
use super::matrix::{View, add_product};
use crate::error::{Error, Result};

/// A normal distribution in feature space: what the Fréchet distance compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    pub mean: Vec<f64>,
    /// `[length, length]`.
    pub covariance: Vec<f64>,
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
        let deviations = View::rows(&deviations, length);
        add_product(&mut self.scatter, (length, batch + 1, length), deviations.transposed(), deviations);
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
