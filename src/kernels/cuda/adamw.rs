//! The norm of all gradients, and AdamW on all parameters, in a launch each.
//!
//! A table of addresses goes to the GPU before each launch: an entry for every piece of a tensor, which a block works on.
use super::transfer::{Download, upload};
use super::{
    Arg::{self, Float},
    Module, device_of, module, output, start,
};
use candle_core::{DType, Result, Tensor, bail};

static KERNELS: Module = module!("adamw");
const THREADS: usize = 256;
/// Values of a piece: enough of them that a table is small, and few enough that an adapter keeps several blocks busy.
const PIECE: usize = 4096;

/// One range of parameters in one step.
pub struct Update {
    /// The parameters, their gradients, and both moments: contiguous, in f32 and of one shape. All but the gradients change.
    pub tensors: [Tensor; 4],
    /// The learning rate over the first moment's bias correction, the root of the second moment's, and what weight decay leaves
    /// of a value.
    pub factors: [f64; 3],
}

/// One step of all ranges.
pub fn step(updates: &[Update], betas: [f64; 2], eps: f64) -> Result<()> {
    let mut table = Table::default();
    for Update { tensors, factors } in updates {
        let factors = factors.map(|factor| (factor as f32).to_bits());
        table.add(tensors.each_ref(), |count| [&[count as u32], &factors[..]].concat())?;
    }
    let Some(Update { tensors: [like, ..], .. }) = updates.first() else { return Ok(()) };
    let numbers = [betas[0], betas[1], eps].map(|number| Float(number as f32));
    table.launch("adamw", like, None, &numbers)
}

/// The sum of all values' squares. The host waits for it.
pub fn sum_of_squares(tensors: &[Tensor]) -> Result<f64> {
    let mut table = Table::default();
    for tensor in tensors {
        table.add([tensor], |count| words(count as u64).to_vec())?;
    }
    let Some(like) = tensors.first() else { return Ok(0.0) };
    let squares = output(table.pieces, DType::F32, like)?;
    table.launch("sums_of_squares", like, Some(&squares), &[])?;
    Ok(Download::start(&squares)?.values()?.into_iter().map(f64::from).sum())
}

fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// What a kernel's blocks work on: the structs of `adamw.cu`, word by word.
#[derive(Default)]
struct Table {
    words: Vec<u32>,
    pieces: usize,
}

impl Table {
    /// Adds the pieces of some tensors that are worked on together: their addresses, then what `rest` makes of a piece's
    /// number of values.
    fn add<const N: usize>(&mut self, tensors: [&Tensor; N], rest: impl Fn(usize) -> Vec<u32>) -> Result<()> {
        let count = tensors[0].elem_count();
        if tensors.iter().any(|tensor| tensor.dtype() != DType::F32 || tensor.elem_count() != count) {
            bail!("AdamW wants tensors of one size in f32");
        }
        let starts = tensors.map(start).into_iter().collect::<Result<Vec<_>>>()?;
        for first in (0..count).step_by(PIECE) {
            self.words.extend(starts.iter().flat_map(|start| words(start + (first * size_of::<f32>()) as u64)));
            self.words.extend(rest(PIECE.min(count - first)));
            self.pieces += 1;
        }
        Ok(())
    }

    /// Launches a kernel on all pieces, which are on the GPU of `like`.
    fn launch(&self, kernel: &str, like: &Tensor, out: Option<&Tensor>, numbers: &[Arg]) -> Result<()> {
        let table = upload(&self.words, self.words.len(), device_of(like)?)?;
        let tensors: Vec<&Tensor> = std::iter::once(&table).chain(out).collect();
        // SAFETY: the table has an entry of the kernel's for each block, made of tensors that are freed, if at all, in the
        // order of the stream; `out` and `numbers` are what the kernel takes after it.
        unsafe { KERNELS.launch(kernel, [self.pieces, 1, 1], THREADS, &tensors, numbers) }
    }
}
