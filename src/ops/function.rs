//! Differentiable functions with hand-written backward passes on candle's graph.
//!
//! Candle keeps one graph node for every small operation, and computes gradients of everything it walks through,
//! frozen weights included. A [`Function`] is one node with up to three differentiable inputs; whatever it captures
//! (weights, targets) is a constant. On the CPU in f32 it runs its own loops, on a GPU its own kernels where it has any;
//! elsewhere it runs its composed twin, and differentiates that by running it again at backward time.
use super::seed::seed;
use candle_core::{CpuStorage, CudaStorage, DType, Layout, Result, Shape, Tensor, Var, bail};
use candle_core::{CustomOp1, CustomOp2, CustomOp3, InplaceOp1, Storage};
use std::ops::Deref;
use std::sync::Mutex;

/// A function of one to three tensors.
pub trait Function: Send + Sync + 'static {
    const NAME: &'static str;

    /// The function in candle's own operations: on any device, in any float type, differentiable by candle.
    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor>;

    /// The same for contiguous f32 inputs on the CPU.
    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor>;

    /// Gradients of contiguous f32 inputs on the CPU, for those that `needs` asks for. `grad` has the output's shape.
    fn cpu_backward(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        grad: &Tensor,
        needs: &[bool],
    ) -> Result<Vec<Option<Tensor>>>;

    /// Gradients on other devices and in other types: by running `composed` again unless there is a better way.
    fn other_backward(&self, inputs: &[Tensor], grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        composed_backward(|inputs| self.composed(inputs), inputs, grad, needs)
    }

    /// The same for contiguous inputs on a GPU by kernels; none where there are none for these inputs.
    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, _inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        Ok(None)
    }

    /// Gradients by kernels after [`Self::cuda_forward`], which left `of.kept`; none where it takes `other_backward`.
    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, _of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        Ok(None)
    }
}

/// Runs `function`, and records it where an input is tracked.
pub fn apply<F: Function>(function: F, inputs: &[&Tensor]) -> Result<Tensor> {
    let plain: Vec<Tensor> = inputs.iter().map(|t| t.detach().contiguous()).collect::<Result<_>>()?;
    let (output, kept) = forward(&function, &plain)?;
    if inputs.iter().all(|t| !t.track_op()) {
        return Ok(output);
    }
    let shape = output.shape().clone();
    let recorded = Recorded { function, output: Mutex::new(Some(output)), shape, kept };
    match inputs {
        [a] => a.apply_op1(recorded),
        [a, b] => a.apply_op2(b, recorded),
        [a, b, c] => a.apply_op3(b, c, recorded),
        _ => bail!("{}: {} inputs, expected 1 to 3", F::NAME, inputs.len()),
    }
}

/// The output, and what kernels kept of it; without kernels the output may share memory with another tensor.
fn forward<F: Function>(function: &F, inputs: &[Tensor]) -> Result<(Tensor, Option<Vec<Tensor>>)> {
    if on_cpu(inputs) {
        return Ok((function.cpu_forward(inputs)?, None));
    }
    #[cfg(feature = "cuda")]
    if inputs.iter().all(|t| t.device().is_cuda())
        && let Some((output, kept)) = function.cuda_forward(inputs)?
    {
        return Ok((output, Some(kept)));
    }
    Ok((function.composed(inputs)?.contiguous()?, None))
}

/// Gradients of `composed` by candle, from a fresh graph over `inputs`.
pub fn composed_backward(
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    grad: &Tensor,
    needs: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let mut leaves = Vec::with_capacity(inputs.len());
    for (input, need) in inputs.iter().zip(needs) {
        leaves.push(if *need { Var::from_tensor(input)?.into_inner() } else { input.detach() });
    }
    let grads = seed(&composed(&leaves)?, grad)?.backward()?;
    leaves
        .iter()
        .zip(needs)
        .map(|(leaf, need)| match (need, grads.get(leaf)) {
            (false, _) => Ok(None),
            (true, Some(grad)) => Ok(Some(grad.clone())),
            (true, None) => Ok(Some(leaf.zeros_like()?)),
        })
        .collect()
}

fn on_cpu(inputs: &[Tensor]) -> bool {
    inputs.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// A function whose output is known already, in the form that candle records.
struct Recorded<F> {
    function: F,
    output: Mutex<Option<Tensor>>,
    shape: Shape,
    /// What kernels left for the backward pass; none where they were not used.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    kept: Option<Vec<Tensor>>,
}

impl<F: Function> Recorded<F> {
    fn take(&self) -> Result<Tensor> {
        match self.output.lock().map(|mut output| output.take()) {
            Ok(Some(output)) => Ok(output),
            _ => bail!("{}: forward ran twice", F::NAME),
        }
    }

    /// The output's storage, moved rather than copied: nobody else holds it.
    fn take_cpu(&self) -> Result<(CpuStorage, Shape)> {
        let output = self.take()?;
        let moved = Take(Mutex::new(CpuStorage::F32(vec![])));
        output.inplace_op1(&moved)?;
        let storage = moved.0.into_inner().map_err(|e| candle_core::Error::Msg(e.to_string()))?;
        Ok((storage, self.shape.clone()))
    }

    fn take_cuda(&self) -> Result<(CudaStorage, Shape)> {
        let output = self.take()?;
        #[cfg(feature = "cuda")]
        if self.kept.is_some() {
            return Ok((super::cuda::take_storage(&output)?, self.shape.clone()));
        }
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => {
                Ok((candle_core::backend::BackendStorage::try_clone(storage, layout)?, self.shape.clone()))
            }
            _ => bail!("{}: output is not on the GPU", F::NAME),
        }
    }

    fn backward(&self, inputs: &[&Tensor], output: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let needs: Vec<bool> = inputs.iter().map(|t| t.track_op()).collect();
        let plain: Vec<Tensor> = inputs.iter().map(|t| t.detach().contiguous()).collect::<Result<_>>()?;
        let grad = grad.detach().contiguous()?;
        if on_cpu(&plain) {
            return self.function.cpu_backward(&plain, &output.detach(), &grad, &needs);
        }
        #[cfg(feature = "cuda")]
        if let Some(kept) = &self.kept {
            let output = output.detach();
            let of = super::cuda::Backward { inputs: &plain, output: &output, kept, grad: &grad, needs: &needs };
            if let Some(grads) = self.function.cuda_backward(&of)? {
                return Ok(grads);
            }
        }
        self.function.other_backward(&plain, &grad, &needs)
    }
}

struct Take(Mutex<CpuStorage>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let Ok(mut place) = self.0.lock() {
            std::mem::swap(&mut *place, storage);
        }
        Ok(())
    }
}

impl<F: Function> CustomOp1 for Recorded<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(&self, a: &Tensor, output: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(&[a], output, grad)?.swap_remove(0))
    }
}

impl<F: Function> CustomOp2 for Recorded<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, output: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(&[a, b], output, grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten()))
    }
}

impl<F: Function> CustomOp3 for Recorded<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(&[a, b, c], output, grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten(), grads.next().flatten()))
    }
}

/// The f32 values of a contiguous CPU tensor, borrowed.
pub struct Values<'a> {
    storage: candle_core::StorageRef<'a>,
    start: usize,
    end: usize,
}

impl<'a> Values<'a> {
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("tensor is not contiguous") };
        if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
            bail!("tensor is not f32 on the CPU")
        }
        Ok(Self { storage, start, end })
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            _ => &[],
        }
    }
}
