//! Attention with a streaming softmax, and the probability of a range of keys; forward and backward.
use super::{Attention, Probability, Sizes};
use crate::autograd::Gradients;
use crate::kernels::cuda::{Arg, Module, WARP, address, aligned, device_of, int, module, output, type_name};
use crate::ops::backend::{Cuda, Forward, Saved};
use candle_core::{DType, Result, Tensor, bail};
use std::ops::Range;

static KERNELS: Module = module!("attention");
static RANGE_KERNELS: Module = module!("probability");
/// As in `attention.cuh`.
const WARPS: usize = 4;
/// Rows of a set, and so of a warp that has one.
const ROWS: usize = 16;
const HEAD_DIMS: [usize; 3] = [32, 64, 128];
/// Of the kernels for a range of keys.
const RANGE_HEAD_DIMS: [usize; 2] = [32, 64];

/// Sizes of one call, and the kernels' type.
struct Call {
    sizes: Sizes,
    type_name: &'static str,
}

impl Call {
    /// None if there are no kernels for such inputs.
    fn of(sizes: Sizes, inputs: &[impl AsRef<Tensor>], head_dims: &[usize]) -> Option<Self> {
        let type_name = type_name(inputs).filter(|_| head_dims.contains(&sizes.head_dim()))?;
        Some(Self { sizes, type_name })
    }

    /// Queries that a warp has: sixteen `SETS` in attention.cuh.
    fn query_rows(&self) -> usize {
        if self.type_name == "bf16" && self.sizes.head_dim() <= 64 { 2 * ROWS } else { ROWS }
    }

    /// A kernel's name and its arguments: its tensors, then the sizes.
    fn arguments(&self, kernel: &str, tensors: &[&Tensor]) -> Result<(String, Vec<Arg>)> {
        let Sizes { queries, keys, heads, last_key_count, .. } = self.sizes;
        let head_dim = self.sizes.head_dim();
        let mut args = tensors.iter().map(|tensor| address(tensor)).collect::<Result<Vec<_>>>()?;
        // Scores are in units of log 2.
        let scale = std::f64::consts::LOG2_E / (head_dim as f64).sqrt();
        args.extend([int(queries)?, int(keys)?, int(heads)?]);
        args.extend([Arg::Float(scale as f32), Arg::Float((last_key_count as f32).log2())]);
        Ok((format!("{kernel}_{}_{head_dim}", self.type_name), args))
    }

    /// Launches a kernel in which every warp has `rows` of `tokens`.
    fn launch(&self, kernel: &str, tokens: usize, rows: usize, tensors: &[&Tensor]) -> Result<()> {
        let (name, args) = self.arguments(kernel, tensors)?;
        let grid = [tokens.div_ceil(WARPS * rows), self.sizes.heads, self.sizes.batch];
        // SAFETY: attention's kernels take tensors of `Call`'s sizes and then those sizes.
        unsafe { KERNELS.launch(device_of(tensors[0])?, &name, grid, WARPS * WARP, &args) }
    }

    /// [`Self::launch`] of a kernel of a range of keys, on as many blocks beside each other as heads or as the range needs.
    fn launch_range(
        &self,
        kernel: &str,
        (tokens, rows, blocks): (usize, usize, usize),
        tensors: &[&Tensor],
        range: &Range<usize>,
    ) -> Result<()> {
        let (name, mut args) = self.arguments(kernel, tensors)?;
        args.extend([int(range.start)?, int(range.len())?]);
        let grid = [tokens.div_ceil(WARPS * rows), blocks, self.sizes.batch];
        // SAFETY: the range's kernels take tensors of `Call`'s sizes, those sizes, and a range within the keys.
        unsafe { RANGE_KERNELS.launch(device_of(tensors[0])?, &name, grid, WARPS * WARP, &args) }
    }

    /// A number for every query of every head.
    fn of_queries(&self, like: &Tensor) -> Result<Tensor> {
        output((self.sizes.batch, self.sizes.heads, self.sizes.queries), DType::F32, like)
    }
}

impl Cuda for Attention {
    /// Leaves the output, and every query's log-sum-exp.
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let Some(call) = Call::of(self.sizes, inputs, &HEAD_DIMS) else { return Ok(None) };
        let [q, k, v] = [aligned(&inputs[0])?, aligned(&inputs[1])?, aligned(&inputs[2])?];
        let (out, lse) = (output(q.shape(), q.dtype(), &q)?, call.of_queries(&q)?);
        call.launch("forward", self.sizes.queries, call.query_rows(), &[&q, &k, &v, &out, &lse])?;
        Ok(Some((out.clone(), vec![out, lse])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (sizes, [out, lse]) = (self.sizes, saved.kept()?);
        let [q, k, v] = [aligned(saved.input(0)?)?, aligned(saved.input(1)?)?, aligned(saved.input(2)?)?];
        let Some(call) = Call::of(sizes, &[&q, &k, &v, &gradient], &HEAD_DIMS) else {
            bail!("attention has no kernels for the gradient of {:?}", gradient.dtype());
        };
        let (gradient, delta) = (aligned(&gradient)?, call.of_queries(&q)?);
        call.launch("delta", sizes.queries, 1, &[out, &gradient, &delta])?;
        if gradients.needs(0) {
            let dq = output(q.shape(), q.dtype(), &q)?;
            let tensors = [&q, &k, &v, &gradient, lse, &delta, &dq];
            call.launch("backward_queries", sizes.queries, call.query_rows(), &tensors)?;
            gradients.add(0, dq)?;
        }
        if gradients.needs(1) || gradients.needs(2) {
            let (dk, dv) = (output(k.shape(), k.dtype(), &k)?, output(v.shape(), v.dtype(), &v)?);
            call.launch("backward_keys", sizes.keys, ROWS, &[&q, &k, &v, &gradient, lse, &delta, &dk, &dv])?;
            gradients.add(1, dk)?;
            gradients.add(2, dv)?;
        }
        Ok(())
    }
}

impl Cuda for Probability {
    /// Leaves every query's log-sum-exp.
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let (sizes, range) = (self.sizes, &self.range);
        let Some(call) = Call::of(sizes, inputs, &RANGE_HEAD_DIMS) else { return Ok(None) };
        let [q, k] = [aligned(&inputs[0])?, aligned(&inputs[1])?];
        // Attention with keys as values leaves the sums; its output goes unused.
        let (unused, lse) = (output(q.shape(), q.dtype(), &q)?, call.of_queries(&q)?);
        call.launch("forward", sizes.queries, call.query_rows(), &[&q, &k, &k, &unused, &lse])?;
        let out = output((sizes.batch, sizes.queries, range.len()), DType::F32, &q)?;
        // As `TILE` in attention.cuh: keys of a block.
        let tile = if q.dtype() == DType::BF16 { 64 } else { 32 };
        let blocks = range.len().div_ceil(tile);
        call.launch_range("range_forward", (sizes.queries, ROWS, blocks), &[&q, &k, &lse, &out], range)?;
        Ok(Some((out, vec![lse])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (sizes, range, [lse]) = (self.sizes, &self.range, saved.kept()?);
        let [q, k] = [aligned(saved.input(0)?)?, aligned(saved.input(1)?)?];
        let Some(call) = Call::of(sizes, &[&q, &k], &RANGE_HEAD_DIMS) else {
            bail!("the probability of attention has no kernels for {:?}", q.dtype());
        };
        let (heads, delta) = (sizes.heads, call.of_queries(&q)?);
        call.launch_range("range_delta", (sizes.queries, ROWS, heads), &[&q, &k, lse, &gradient, &delta], range)?;
        let (dq, dk) = (output(q.shape(), q.dtype(), &q)?, output(k.shape(), k.dtype(), &k)?);
        let rows = call.query_rows();
        call.launch_range(
            "range_queries",
            (sizes.queries, rows, heads),
            &[&q, &k, lse, &gradient, &delta, &dq],
            range,
        )?;
        call.launch_range("range_keys", (sizes.keys, ROWS, heads), &[&q, &k, lse, &gradient, &delta, &dk], range)?;
        gradients.add(0, dq)?;
        gradients.add(1, dk)
    }
}
