//! The Fréchet distance of two normal distributions (pytorch-fid: `calculate_frechet_distance`).
use super::matrix::{add_product, factor, nuclear_norm};
use super::moments::Gaussian;
use crate::system::error::{Error, Result};
use faer::MatRef;

/// Share of what it is made of by which a distance may come out below zero.
const ROUNDING: f64 = 1e-5;

/// `‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½)`.
///
/// With `Σ₁ = LLᵀ` and `Σ₂ = MMᵀ`, the trace of the root is the sum of the singular values of `MᵀL`: that needs no root of
/// a nearly singular matrix, whose rounding grows with the root, and is exact for covariances of any rank. It takes
/// 4 × 32 MiB for features of length 2048.
///
/// # Errors
/// When the distributions have different lengths or values that are not finite, or are none.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    let length = a.mean.len();
    if b.mean.len() != length {
        return Err(Error::Failed(format!("features of length {length} against features of length {}", b.mean.len())));
    }
    let finite = |gaussian: &Gaussian| gaussian.mean.iter().chain(&gaussian.covariance).all(|value| value.is_finite());
    if !finite(a) || !finite(b) {
        return Err(Error::Failed("features are not finite: there is no distance between them".into()));
    }
    let trace = |gaussian: &Gaussian| (0..length).map(|i| gaussian.covariance[i * (length + 1)]).sum::<f64>();
    let factor = |gaussian: &Gaussian| {
        factor(MatRef::from_row_major_slice(&gaussian.covariance, length, length))
            .ok_or_else(|| Error::Failed("the factor of a covariance overflows".into()))
    };
    let (left, right) = (factor(a)?, factor(b)?);
    let (rows, columns) = (right.ncols(), left.ncols());
    let mut product = vec![0f64; rows * columns];
    add_product(&mut product, right.transpose(), left.as_ref());
    let shared = nuclear_norm(MatRef::from_row_major_slice(&product, rows, columns))?;
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let whole = means + trace(a) + trace(b);
    let distance = whole - 2.0 * shared;
    // Equal distributions may come out at minus the rounding.
    match distance >= -ROUNDING * whole && distance.is_finite() {
        true => Ok(distance.max(0.0)),
        false => Err(Error::Failed(format!("the distance would be {distance}: these are no covariances"))),
    }
}
