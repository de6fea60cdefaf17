//! The score head: convolutions 3×3, 1→64→64→1 with ReLU between, on every map alone, added to the map.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub(super) mod products;
mod reference;

use super::backend::{Variable, apply};
use super::elementary::cat;
use candle_core::{DType, Result, Tensor};
pub use products::backward_bytes;

/// Channels between the layers.
pub const CHANNELS: usize = 64;
/// Name and shape of every parameter, as torch's `Sequential(Conv2d, ReLU, Conv2d, ReLU, Conv2d)` has them.
pub const PARAMETERS: [(&str, &[usize]); 6] = [
    ("0.weight", &[CHANNELS, 1, 3, 3]),
    ("0.bias", &[CHANNELS]),
    ("2.weight", &[CHANNELS, CHANNELS, 3, 3]),
    ("2.bias", &[CHANNELS]),
    ("4.weight", &[1, CHANNELS, 3, 3]),
    ("4.bias", &[1]),
];
/// How exact the middle layer's products are on a GPU. Its gradients are those of exact products in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As f32 products: relative errors of about 2⁻¹⁷ of a factor.
    F32,
    /// Factors rounded to bf16 and summed in f32, for a third of the work: relative errors of 2⁻⁹ of a factor. A run in
    /// bf16 has such errors in the maps already, and PyTorch's autocast rounds all three layers and what is between them.
    Bf16,
}

impl Precision {
    /// Of a run whose arithmetic is in `dtype`.
    pub fn of(dtype: DType) -> Self {
        if dtype == DType::BF16 { Self::Bf16 } else { Self::F32 }
    }
}

/// `maps + head(maps)`: maps `[maps, h, w]`, parameters in the order of [`PARAMETERS`].
///
/// # Errors
/// Shapes that do not fit.
pub fn score_head(maps: &Variable, parameters: &[Variable], precision: Precision) -> Result<Variable> {
    if maps.tensor().dim(0)? == 0 {
        return Ok(maps.clone());
    }
    let flat = parameters.iter().map(|parameter| parameter.reshape(parameter.tensor().elem_count()));
    let flat = cat(&flat.collect::<Result<Vec<_>>>()?, 0)?;
    apply(ScoreHead(precision), &[maps, &flat])
}

/// The parameters from one flat vector, in order.
fn split<T>(mut take: impl FnMut(usize) -> T) -> [T; 6] {
    PARAMETERS.map(|(_, shape)| take(shape.iter().product()))
}

/// The parameters from one flat tensor, each in its shape.
fn tensors(flat: &Tensor) -> Result<[Tensor; 6]> {
    let mut end = 0;
    let [a, b, c, d, e, f] = PARAMETERS.map(|(_, shape)| {
        let count = shape.iter().product();
        end += count;
        flat.narrow(0, end - count, count)?.reshape(shape)
    });
    Ok([a?, b?, c?, d?, e?, f?])
}

/// Inputs: maps, and the parameters flat.
pub(super) struct ScoreHead(pub Precision);
