//! Gaussian noise that depends on its key alone: not on the device, the number of threads, or earlier draws.
use crate::ops::device::upload;
use crate::system::error::Result;
use candle_core::{Device, Shape, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use sha2::{Digest, Sha256};

/// The random generator of a seed and a stream, such as `[purpose, step, sample]`.
///
/// Streams with different keys are independent.
pub fn generator(seed: u64, stream: &[u64]) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    for counter in stream {
        hash.update(counter.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// Independent standard normal numbers of this shape, f32, drawn on the host and copied to `device`.
pub fn normal(seed: u64, stream: &[u64], shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    let values: Vec<f32> = generator(seed, stream).sample_iter(StandardNormal).take(shape.elem_count()).collect();
    Ok(upload(values, shape, device)?)
}
