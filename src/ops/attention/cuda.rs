//! Attention with a streaming softmax, and the probability of a range of keys; forward and backward.
use super::{Attention, Probability, Sizes};
use crate::kernels::cuda::Arg::{Float, Int};
use crate::kernels::cuda::{Module, WARP, aligned, module, output, type_name};
use crate::ops::backend::{Cuda, Forward, Gradients, Saved};
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

    /// Launches a kernel in which every warp has `rows` of `tokens`, on so many `blocks` beside each other: it takes tensors, then
    /// the sizes, then the range of keys, if it is one of these.
    fn launch(
        &self,
        kernel: &str,
        (tokens, rows, blocks): (usize, usize, usize),
        tensors: &[&Tensor],
        range: Option<&Range<usize>>,
    ) -> Result<()> {
        let Sizes { queries, keys, heads, .. } = self.sizes;
        let head_dim = self.sizes.head_dim();
        // Scores are in units of log 2.
        let scale = std::f64::consts::LOG2_E / (head_dim as f64).sqrt();
        let mut sizes = vec![Int(queries), Int(keys), Int(heads)];
        sizes.extend([Float(scale as f32), Float(self.sizes.last_key_bias())]);
        sizes.extend(range.into_iter().flat_map(|range| [Int(range.start), Int(range.len())]));
        let kernels = if range.is_some() { &RANGE_KERNELS } else { &KERNELS };
        let name = format!("{kernel}_{}_{head_dim}", self.type_name);
        let grid = [tokens.div_ceil(WARPS * rows), blocks, self.sizes.batch];
        // SAFETY: the kernels take tensors of `Call`'s sizes, those sizes, and a range within the keys.
        unsafe { kernels.launch(&name, grid, WARPS * WARP, tensors, &sizes) }
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
        let work = (self.sizes.queries, call.query_rows(), self.sizes.heads);
        call.launch("forward", work, &[&q, &k, &v, &out, &lse], None)?;
        Ok(Some((out.clone(), vec![out, lse])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (sizes, [out, lse]) = (self.sizes, saved.kept()?);
        let [q, k, v] = [aligned(saved.input(0)?)?, aligned(saved.input(1)?)?, aligned(saved.input(2)?)?];
        let Some(call) = Call::of(sizes, &[&q, &k, &v, &gradient], &HEAD_DIMS) else {
            bail!("attention has no kernels for the gradient of {:?}", gradient.dtype());
        };
        let (gradient, delta, heads) = (aligned(&gradient)?, call.of_queries(&q)?, sizes.heads);
        call.launch("delta", (sizes.queries, 1, heads), &[out, &gradient, &delta], None)?;
        if gradients.needs(0) {
            let dq = output(q.shape(), q.dtype(), &q)?;
            let tensors = [&q, &k, &v, &gradient, lse, &delta, &dq];
            call.launch("backward_queries", (sizes.queries, call.query_rows(), heads), &tensors, None)?;
            gradients.add(0, dq)?;
        }
        if gradients.needs(1) || gradients.needs(2) {
            let (dk, dv) = (output(k.shape(), k.dtype(), &k)?, output(v.shape(), v.dtype(), &v)?);
            let tensors = [&q, &k, &v, &gradient, lse, &delta, &dk, &dv];
            call.launch("backward_keys", (sizes.keys, ROWS, heads), &tensors, None)?;
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
        let work = (sizes.queries, call.query_rows(), sizes.heads);
        call.launch("forward", work, &[&q, &k, &k, &unused, &lse], None)?;
        let out = output((sizes.batch, sizes.queries, range.len()), DType::F32, &q)?;
        // As `TILE` in attention.cuh: keys of a block.
        let tile = if q.dtype() == DType::BF16 { 64 } else { 32 };
        let work = (sizes.queries, ROWS, range.len().div_ceil(tile));
        call.launch("range_forward", work, &[&q, &k, &lse, &out], Some(range))?;
        Ok(Some((out, vec![lse])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (sizes, [lse]) = (self.sizes, saved.kept()?);
        let [q, k] = [aligned(saved.input(0)?)?, aligned(saved.input(1)?)?];
        let Some(call) = Call::of(sizes, &[&q, &k], &RANGE_HEAD_DIMS) else {
            bail!("the probability of attention has no kernels for {:?}", q.dtype());
        };
        let delta = call.of_queries(&q)?;
        let launch = |kernel: &str, (tokens, rows): (usize, usize), tensors: &[&Tensor]| {
            let tensors = [&[&q, &k, lse, &gradient], tensors].concat();
            call.launch(kernel, (tokens, rows, sizes.heads), &tensors, Some(&self.range))
        };
        let (dq, dk) = (output(q.shape(), q.dtype(), &q)?, output(k.shape(), k.dtype(), &k)?);
        launch("range_delta", (sizes.queries, ROWS), &[&delta])?;
        launch("range_queries", (sizes.queries, call.query_rows()), &[&delta, &dq])?;
        launch("range_keys", (sizes.keys, ROWS), &[&delta, &dk])?;
        gradients.add(0, dq)?;
        gradients.add(1, dk)
    }
}
