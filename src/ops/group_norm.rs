//! Group norm of the frozen autoencoder, alone or followed by SiLU, forward only.
use super::conv2d::with_slices;
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::Module;
use rayon::prelude::*;

/// Group norm with weight and bias a channel.
pub struct GroupNorm {
    /// `[channels]`.
    weight: Tensor,
    /// `[channels]`.
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        if groups == 0 || !weight.dims1()?.is_multiple_of(groups) || bias.shape() != weight.shape() {
            bail!("group norm: {groups} groups, weight {:?}, bias {:?}", weight.shape(), bias.shape())
        }
        Ok(Self { weight: weight.contiguous()?, bias: bias.contiguous()?, groups, eps })
    }

    /// `[batch, channels, height, width]` to the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, |value| value, Ok)
    }

    /// As [`Self::forward`], then `v · sigmoid(v)`.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, |value| value / (1.0 + (-value).exp()), |x| x.silu())
    }

    fn run(
        &self,
        x: &Tensor,
        each: impl Fn(f32) -> f32 + Sync,
        composed: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (_, channels, height, width) = x.dims4()?;
        if channels != self.weight.elem_count() || height * width == 0 {
            bail!("group norm: input {:?} for weight {:?}", x.shape(), self.weight.shape())
        }
        if !x.device().is_cpu() || x.dtype() != DType::F32 || self.weight.dtype() != DType::F32 {
            let (weight, bias) = (self.weight.clone(), self.bias.clone());
            let norm = candle_nn::GroupNorm::new(weight, bias, channels, self.groups, self.eps)?;
            return composed(norm.forward(x)?);
        }
        let (plane, per_group) = (height * width, channels / self.groups);
        let x = x.contiguous()?;
        let mut y = vec![0f32; x.elem_count()];
        with_slices(&[&x, &self.weight, &self.bias], |slices| {
            let [x, weight, bias] = slices else { unreachable!("as many slices as tensors") };
            let groups = y.par_chunks_mut(per_group * plane).zip(x.par_chunks(per_group * plane));
            groups.enumerate().for_each(|(index, (y, x))| {
                let (mean, inverse) = self.statistics(x);
                let first = index % self.groups * per_group;
                let planes = y.chunks_exact_mut(plane).zip(x.chunks_exact(plane));
                for ((y, x), channel) in planes.zip(first..) {
                    let scale = inverse * weight[channel];
                    let offset = bias[channel] - mean * scale;
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = each(x * scale + offset));
                }
            });
        })?;
        Tensor::from_vec(y, x.shape(), x.device())
    }

    /// Mean and reciprocal standard deviation of a group.
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        // Runs are summed in f32 lanes, the runs in f64: as exact as need be, and the loops become vector loops.
        const RUN: usize = 4096;
        let count = x.len() as f64;
        let mean = x.chunks(RUN).map(|run| lane_sum(run, |v| v)).sum::<f64>() / count;
        let center = mean as f32;
        let squares = x.chunks(RUN).map(|run| lane_sum(run, |v| (v - center) * (v - center))).sum::<f64>();
        (center, (squares / count + self.eps).sqrt().recip() as f32)
    }
}

/// Sum of `each` over a run, in 16 lanes.
fn lane_sum(run: &[f32], each: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f32; 16];
    let chunks = run.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|&v| each(v)).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane += each(v));
    }
    f64::from(lanes.iter().sum::<f32>() + rest)
}
