//! Group norm of the frozen autoencoder, forward only.
//!
//! Its statistics need the whole map, but what it then does to a value is one multiplication and one addition: whoever
//! reads the map can do that on the way ([`Affine`]), and no normed copy is made.
use crate::kernels::cpu::vectorised;
use crate::kernels::memory::Values;
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

/// Values whose statistics are taken together while they are in the first level of cache, each set in two passes.
const RUN: usize = 4096;
/// Values whose squares the reference implementation holds at a time: 128 MiB in f32.
const REFERENCE_VALUES: usize = 1 << 25;

/// Group norm with weight and bias a channel.
pub struct GroupNorm {
    /// `[channels]`.
    weight: Tensor,
    /// `[channels]`.
    bias: Tensor,
    groups: usize,
    eps: f64,
}

/// A group norm with the statistics of one input: channel by channel `scale · value + offset`.
pub struct Affine {
    /// `[batch, channels, 1, 1]`.
    pub scale: Tensor,
    /// `[batch, channels, 1, 1]`.
    pub offset: Tensor,
}

impl Affine {
    /// Norms `x`, `[batch, channels, height, width]`: the input that the statistics are from, or some rows of it.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.broadcast_mul(&self.scale)?.broadcast_add(&self.offset)
    }
}

impl GroupNorm {
    /// `weight` and `bias` are `[channels]`, of which `groups` are a divisor.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        if groups == 0 || !weight.dims1()?.is_multiple_of(groups) || bias.shape() != weight.shape() {
            bail!("group norm: {groups} groups, weight {:?}, bias {:?}", weight.shape(), bias.shape())
        }
        Ok(Self { weight: weight.contiguous()?, bias: bias.contiguous()?, groups, eps })
    }

    /// `[batch, channels, height, width]`, normed.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.affine(x)?.apply(x)
    }

    /// Takes the statistics of `x`, `[batch, channels, height, width]`.
    pub fn affine(&self, x: &Tensor) -> Result<Affine> {
        let (batch, channels, height, width) = x.dims4()?;
        if channels != self.weight.elem_count() || height * width == 0 {
            bail!("group norm: input {:?} for weight {:?}", x.shape(), self.weight.shape())
        }
        let x = x.contiguous()?;
        let (mean, inverse_std) = if x.device().is_cpu() && x.dtype() == DType::F32 {
            self.statistics_cpu(&x)?
        } else {
            self.statistics_reference(&x, REFERENCE_VALUES)?
        };
        let by_group = |tensor: &Tensor| tensor.reshape((1, self.groups, channels / self.groups));
        let scale = by_group(&self.weight)?.broadcast_mul(&inverse_std)?;
        let offset = by_group(&self.bias)?.broadcast_sub(&scale.broadcast_mul(&mean)?)?;
        let by_channel = |tensor: Tensor| tensor.reshape((batch, channels, 1, 1));
        Ok(Affine { scale: by_channel(scale)?, offset: by_channel(offset)? })
    }

    /// Mean and reciprocal standard deviation of each group, `[batch, groups, 1]`, in f32 on the CPU.
    fn statistics_cpu(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let shape = (x.dim(0)?, self.groups, 1);
        let values = Values::of(x)?;
        let group = values.len() / (shape.0 * shape.1);
        let statistics = values.par_chunks(group).map(|group| statistics(group, self.eps));
        let (mean, inverse_std): (Vec<f32>, Vec<f32>) = statistics.unzip();
        Ok((Tensor::from_vec(mean, shape, x.device())?, Tensor::from_vec(inverse_std, shape, x.device())?))
    }

    /// The reference implementation, in candle's operations: so many groups at a time that their squares are no more
    /// than `most` values, or one.
    fn statistics_reference(&self, x: &Tensor, most: usize) -> Result<(Tensor, Tensor)> {
        let x = x.reshape((x.dim(0)?, self.groups, ()))?;
        let (batch, groups, group) = x.dims3()?;
        let at_once = (most / (batch * group)).clamp(1, groups);
        let (mut means, mut inverses) = (vec![], vec![]);
        for first in (0..groups).step_by(at_once) {
            let x = x.narrow(1, first, at_once.min(groups - first))?;
            let mean = x.mean_keepdim(2)?;
            let variance = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(2)?;
            means.push(mean);
            inverses.push((variance + self.eps)?.sqrt()?.recip()?);
        }
        Ok((Tensor::cat(&means, 1)?, Tensor::cat(&inverses, 1)?))
    }
}

/// Mean and reciprocal standard deviation: f32 lanes within a run, f64 from run to run (Chan, Golub and LeVeque 1983).
fn statistics(values: &[f32], eps: f64) -> (f32, f32) {
    let (mut count, mut mean, mut squares) = (0f64, 0f64, 0f64);
    for run in values.chunks(RUN) {
        let of_run = run.len() as f64;
        let (mean_of_run, squares_of_run) = vectorised!({
            let mean = lane_sum(run, |value| value) / of_run;
            let center = mean as f32;
            (mean, lane_sum(run, |value| (value - center) * (value - center)))
        });
        let (all, distance) = (count + of_run, mean_of_run - mean);
        mean += distance * of_run / all;
        squares += squares_of_run + distance * distance * count * of_run / all;
        count = all;
    }
    (mean as f32, (squares / count + eps).sqrt().recip() as f32)
}

/// Sum of `each` over a run, in 16 lanes.
#[inline(always)]
fn lane_sum(run: &[f32], each: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = run.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += each(value));
    }
    let rest: f32 = rest.iter().map(|&value| each(value)).sum();
    f64::from(lanes.iter().sum::<f32>() + rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn it_is_the_reference_of_any_number_of_groups_at_a_time() {
        for (channels, groups, height, width) in [(6, 3, 67, 93), (8, 8, 1, 1), (4, 1, 5, 3)] {
            let random = |shape: &[usize]| Tensor::randn(0.3f32, 2., shape, &Device::Cpu).unwrap();
            let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
            let (weight, bias) = (random(&[channels]), random(&[channels]));
            let x = random(&[2, channels, height, width]);
            let exact = GroupNorm::new(wide(&weight), wide(&bias), groups, 1e-3).unwrap();
            let found = wide(&GroupNorm::new(weight, bias, groups, 1e-3).unwrap().forward(&x).unwrap());
            let expected = exact.forward(&wide(&x)).unwrap();
            let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            let off = |found: &Tensor, expected: &Tensor| largest(&(found - expected).unwrap());
            // Relative to what the offset is added to: of a group of one value nothing is left of that.
            let scaled = wide(&x).broadcast_mul(&exact.affine(&wide(&x)).unwrap().scale).unwrap();
            let bound = 2e-6 * largest(&scaled).max(largest(&expected));
            assert!(off(&found, &expected) < bound, "{groups} groups: {}", off(&found, &expected));
            let (mean, inverse) = exact.statistics_reference(&wide(&x), usize::MAX).unwrap();
            for most in [1, 2 * 2 * channels / groups * height * width] {
                let (in_parts, inverse_in_parts) = exact.statistics_reference(&wide(&x), most).unwrap();
                assert!(off(&in_parts, &mean) < 1e-12 && off(&inverse_in_parts, &inverse) < 1e-12);
            }
        }
    }
}
