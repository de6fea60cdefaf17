//! Attention with a streaming softmax, and the probability of a range of keys; forward and backward.
use super::{Arg, Backward, Forward, Gradients, Module, address, aligned, device_of, int, module, output, type_name};
use candle_core::{DType, Result, Tensor, bail};
use std::ops::Range;
use std::sync::LazyLock;

static KERNELS: Module = module!("attention");
static RANGE_KERNELS: Module = module!("probability");
/// As in `attention.cuh`.
const WARPS: usize = 4;
/// Rows of a set, and so of a warp that has one.
const ROWS: usize = 16;
const HEAD_DIMS: [usize; 3] = [32, 64, 128];
/// Of the kernels for a range of keys.
const RANGE_HEAD_DIMS: [usize; 2] = [32, 64];

/// How many blocks of attention's kernels a multiprocessor is to have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// As many as the registers that the compiler wants leave room for.
    Registers,
    /// Three, with fewer registers; heads of 64 values in bf16 only, for all others as `Registers`.
    ThreeBlocks,
}

impl Bounds {
    /// What the environment says: `SEG4DIFF_ATTENTION_BLOCKS=3`, to measure the one beside the other.
    pub fn chosen() -> Self {
        static CHOSEN: LazyLock<Bounds> = LazyLock::new(|| match std::env::var_os("SEG4DIFF_ATTENTION_BLOCKS") {
            Some(blocks) if blocks == "3" => Bounds::ThreeBlocks,
            _ => Bounds::Registers,
        });
        *CHOSEN
    }
}

/// One call's sizes.
struct Call {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    head_dim: usize,
    last_key_count: usize,
    type_name: &'static str,
    bounds: Bounds,
}

impl Call {
    /// None if there are no kernels for these inputs.
    fn of(inputs: &[Tensor], heads: usize, last_key_count: usize, bounds: Bounds) -> Result<Option<Self>> {
        let [q, k, v] = inputs else { bail!("attention: {} inputs", inputs.len()) };
        let (batch, queries, width) = q.dims3()?;
        if k.dims() != v.dims() || k.dims()[0] != batch || k.dims()[2] != width {
            bail!("attention: q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
        }
        let head_dim = width / heads;
        let name = type_name(&[q, k, v]).filter(|_| HEAD_DIMS.contains(&head_dim));
        let keys = k.dims()[1];
        Ok(name.map(|type_name| Self { batch, queries, keys, heads, head_dim, last_key_count, type_name, bounds }))
    }

    /// The same for the probability of a range of keys.
    fn of_range(
        q: &Tensor,
        k: &Tensor,
        heads: usize,
        range: &Range<usize>,
        last_key_count: usize,
    ) -> Result<Option<Self>> {
        let call = Self::of(&[q.clone(), k.clone(), k.clone()], heads, last_key_count, Bounds::Registers)?;
        Ok(call.filter(|call| RANGE_HEAD_DIMS.contains(&call.head_dim) && range.end <= call.keys))
    }

    /// Queries that a warp has: sixteen `SETS` in attention.cuh.
    fn query_rows(&self, q: &Tensor) -> usize {
        if q.dtype() == DType::BF16 && self.head_dim <= 64 { 2 * ROWS } else { ROWS }
    }

    /// What follows the name of a kernel that is there under several launch bounds.
    fn bounds_suffix(&self) -> &'static str {
        match self.bounds {
            Bounds::ThreeBlocks if self.type_name == "bf16" && self.head_dim == 64 => "_bounds3",
            _ => "",
        }
    }

    /// A kernel's name and its arguments: its tensors, then the sizes.
    fn arguments(&self, kernel: &str, tensors: &[&Tensor]) -> Result<(String, Vec<Arg>)> {
        let mut args = tensors.iter().map(|tensor| address(tensor)).collect::<Result<Vec<_>>>()?;
        // Scores are in units of log 2.
        let scale = std::f64::consts::LOG2_E / (self.head_dim as f64).sqrt();
        args.extend([int(self.queries)?, int(self.keys)?, int(self.heads)?]);
        args.extend([Arg::Float(scale as f32), Arg::Float((self.last_key_count as f32).log2())]);
        Ok((format!("{kernel}_{}_{}", self.type_name, self.head_dim), args))
    }

    /// Launches a kernel in which every warp has `rows` of `tokens`.
    fn launch(&self, kernel: &str, tokens: usize, rows: usize, tensors: &[&Tensor]) -> Result<()> {
        let (name, args) = self.arguments(kernel, tensors)?;
        let name = name + self.bounds_suffix();
        let grid = [tokens.div_ceil(WARPS * rows), self.heads, self.batch];
        // SAFETY: attention's kernels take tensors of `Call`'s sizes and then those sizes.
        unsafe { KERNELS.launch(device_of(tensors[0])?, &name, grid, WARPS * super::WARP, &args) }
    }

    /// The same for a kernel of a range of keys, on as many blocks beside each other as heads or as the range needs.
    fn launch_range(
        &self,
        kernel: &str,
        (tokens, rows, blocks): (usize, usize, usize),
        tensors: &[&Tensor],
        range: &Range<usize>,
    ) -> Result<()> {
        let (name, mut args) = self.arguments(kernel, tensors)?;
        args.extend([int(range.start)?, int(range.len())?]);
        let grid = [tokens.div_ceil(WARPS * rows), blocks, self.batch];
        // SAFETY: the range's kernels take tensors of `Call`'s sizes, those sizes, and a range within the keys.
        unsafe { RANGE_KERNELS.launch(device_of(tensors[0])?, &name, grid, WARPS * super::WARP, &args) }
    }

    fn of_queries(&self, like: &Tensor) -> Result<Tensor> {
        output((self.batch, self.heads, self.queries), DType::F32, like)
    }
}

/// Keeps the logarithm of every query's sum of exponentials. None if there are no kernels for these inputs.
pub fn forward(inputs: &[Tensor], heads: usize, last_key_count: usize, bounds: Bounds) -> Result<Option<Forward>> {
    let Some(call) = Call::of(inputs, heads, last_key_count, bounds)? else { return Ok(None) };
    let (q, k, v) = (aligned(&inputs[0])?, aligned(&inputs[1])?, aligned(&inputs[2])?);
    let out = output(q.shape(), q.dtype(), &q)?;
    let lse = call.of_queries(&q)?;
    call.launch("forward", call.queries, call.query_rows(&q), &[&q, &k, &v, &out, &lse])?;
    Ok(Some((out, vec![lse])))
}

/// Gradients of q, k and v.
pub fn backward(of: &Backward, heads: usize, last_key_count: usize, bounds: Bounds) -> Result<Gradients> {
    let (Backward { inputs, output: out, needs, .. }, [lse]) = (of, of.kept) else { return Ok(None) };
    let Some(call) = Call::of(inputs, heads, last_key_count, bounds)? else { return Ok(None) };
    let (q, k, v) = (aligned(&inputs[0])?, aligned(&inputs[1])?, aligned(&inputs[2])?);
    let grad = aligned(&of.grad.to_dtype(q.dtype())?)?;
    let along = call.of_queries(&q)?;
    call.launch("gradient_along", call.queries, 1, &[out, &grad, &along])?;
    let mut grads = vec![None, None, None];
    if needs[0] {
        let dq = output(q.shape(), q.dtype(), &q)?;
        call.launch("backward_queries", call.queries, call.query_rows(&q), &[&q, &k, &v, &grad, lse, &along, &dq])?;
        grads[0] = Some(dq);
    }
    if needs[1] || needs[2] {
        let (dk, dv) = (output(k.shape(), k.dtype(), &k)?, output(v.shape(), v.dtype(), &v)?);
        call.launch("backward_keys", call.keys, ROWS, &[&q, &k, &v, &grad, lse, &along, &dk, &dv])?;
        (grads[1], grads[2]) = (needs[1].then_some(dk), needs[2].then_some(dv));
    }
    Ok(Some(grads))
}

/// The probability of the keys in `range`, `[batch, queries, range]` in f32. Keeps what [`forward`] keeps.
pub fn range_forward(
    inputs: &[Tensor],
    heads: usize,
    range: &Range<usize>,
    last_key_count: usize,
) -> Result<Option<Forward>> {
    let [q, k] = inputs else { bail!("attention probability: {} inputs", inputs.len()) };
    let Some(call) = Call::of_range(q, k, heads, range, last_key_count)? else { return Ok(None) };
    let (q, k) = (aligned(q)?, aligned(k)?);
    // Attention with keys as values leaves the sums; its output goes unused.
    let (unused, lse) = (output(q.shape(), q.dtype(), &q)?, call.of_queries(&q)?);
    call.launch("forward", call.queries, call.query_rows(&q), &[&q, &k, &k, &unused, &lse])?;
    let out = output((call.batch, call.queries, range.len()), DType::F32, &q)?;
    // As `TILE` in attention.cuh: keys of a block.
    let tile = if q.dtype() == DType::BF16 { 64 } else { 32 };
    let blocks = range.len().div_ceil(tile);
    call.launch_range("range_forward", (call.queries, ROWS, blocks), &[&q, &k, &lse, &out], range)?;
    Ok(Some((out, vec![lse])))
}

/// Gradients of q and k.
pub fn range_backward(of: &Backward, heads: usize, range: &Range<usize>, last_key_count: usize) -> Result<Gradients> {
    let (grad, [q, k], [lse]) = (of.grad, of.inputs, of.kept) else { return Ok(None) };
    let Some(call) = Call::of_range(q, k, heads, range, last_key_count)? else { return Ok(None) };
    let (q, k) = (aligned(q)?, aligned(k)?);
    let along = call.of_queries(&q)?;
    call.launch_range("range_along", (call.queries, ROWS, heads), &[&q, &k, lse, grad, &along], range)?;
    let (dq, dk) = (output(q.shape(), q.dtype(), &q)?, output(k.shape(), k.dtype(), &k)?);
    let rows = call.query_rows(&q);
    call.launch_range("range_queries", (call.queries, rows, heads), &[&q, &k, lse, grad, &along, &dq], range)?;
    call.launch_range("range_keys", (call.keys, ROWS, heads), &[&q, &k, lse, grad, &along, &dk], range)?;
    Ok(Some(vec![Some(dq), Some(dk)]))
}
