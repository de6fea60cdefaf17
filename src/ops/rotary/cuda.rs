//! Rotary positions on a GPU.
use super::Rotary;
use crate::kernels::cuda::Arg::{Int, Long};
use crate::kernels::cuda::{Module, module, output, type_name};
use crate::ops::backend::{Cuda, Forward, Gradients, Saved};
use candle_core::{Result, Tensor, bail};

static KERNELS: Module = module!("rotary");
const THREADS: usize = 256;

impl Rotary {
    /// Turns x into y, which may be its memory, or, with `back`, the other way round.
    fn launch(&self, x: &Tensor, y: &Tensor, back: bool) -> Result<()> {
        let ((_, tokens, width), (turned, pairs)) = (x.dims3()?, self.table.cosines.dims2()?);
        let Some(type_name) = type_name(&[x, y]) else { bail!("rotary positions on {:?}", x.dtype()) };
        let count = x.elem_count() / 2;
        let tensors = [x, &self.table.cosines, &self.table.sines, y];
        let sizes = [Long(count), Int(width), Int(tokens), Int(turned), Int(pairs), Int((!back).into())];
        let (name, grid) = (format!("rotary_{type_name}"), [count.div_ceil(THREADS), 1, 1]);
        // SAFETY: the kernel takes tensors of these sizes, and tables of `turned` tokens.
        unsafe { KERNELS.launch(&name, grid, THREADS, &tensors, &sizes) }
    }
}

impl Cuda for Rotary {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let x = &inputs[0];
        let y = output(x.shape(), x.dtype(), x)?;
        self.launch(x, &y, false)?;
        Ok(Some((y, vec![])))
    }

    /// Over the gradient of the output, which is nobody else's.
    fn backward_cuda(&self, _: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        self.launch(&gradient, &gradient, true)?;
        gradients.add(0, gradient)
    }
}
