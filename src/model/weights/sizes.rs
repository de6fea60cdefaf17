//! Sizes that a model's configuration names, before anything is made of them.
use crate::system::error::{Error, Result};
use crate::system::limits::MODEL_SIZE;
use std::path::Path;

/// Refuses a size that is zero, or larger than any model's: products of two then stay whole numbers. What they say is
/// checked against the weights' own shapes when those are read.
pub fn check(file: &Path, sizes: &[(&str, usize)]) -> Result<()> {
    check_up_to(MODEL_SIZE, file, sizes)
}

/// [`check`] with another `largest` size.
pub fn check_up_to(largest: usize, file: &Path, sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=largest).contains(size)) {
        None => Ok(()),
        Some((name, size)) => Err(Error::file(file, format!("{name} is {size}, expected 1 to {largest}"))),
    }
}

/// Refuses a small number that is added to a variance and is none.
pub fn check_eps(file: &Path, name: &str, eps: f64) -> Result<()> {
    match (0.0..=1.0).contains(&eps) {
        true => Ok(()),
        false => Err(Error::file(file, format!("{name} is {eps}, expected 0 to 1"))),
    }
}
