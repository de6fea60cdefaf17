//! The implementations that every operation has, and which of them runs.
//!
//! An operation is a type in the `mod.rs` of its folder; `reference.rs`, `cpu.rs` and `cuda.rs` implement [`Reference`],
//! [`Cpu`] and [`Cuda`] for it, and with these [`apply`] runs it.
use crate::autograd::record;
pub use crate::autograd::{Gradients, Variable};
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};

/// An operation's implementations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Own loops, in f32 in the host's memory.
    Cpu,
    /// Own kernels, in f32 or bf16 on a GPU.
    #[cfg(feature = "cuda")]
    Cuda,
    /// candle's operations, on any device and in any float type.
    Reference,
}

impl Backend {
    /// For these inputs: other than the reference where they are of one type, and on one kind of device.
    pub fn of(inputs: &[Tensor]) -> Self {
        let of = |input: &Tensor| (Self::of_type(input.device(), input.dtype()), input.dtype());
        let (backend, dtype) = of(&inputs[0]);
        if inputs.iter().all(|input| of(input) == (backend, dtype)) { backend } else { Self::Reference }
    }

    /// For inputs of this type on this device.
    pub fn of_type(device: &Device, dtype: DType) -> Self {
        match device {
            Device::Cpu if dtype == DType::F32 => Self::Cpu,
            #[cfg(feature = "cuda")]
            Device::Cuda(_) if crate::kernels::cuda::name_of_type(dtype).is_some() => Self::Cuda,
            _ => Self::Reference,
        }
    }
}

/// The reference implementation, in candle's operations: what other types and devices use, and what tests compare with.
pub trait Reference: Send + 'static {
    /// The output.
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor>;

    /// Adds the gradients of the inputs, by candle's own differentiation of [`Self::reference`], which runs again.
    fn reference_backward(&self, inputs: &[Tensor], gradient: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let leaves = inputs.iter().enumerate().map(|(number, input)| match gradients.needs(number) {
            true => Ok(Var::from_tensor(input)?.into_inner()),
            false => Ok(input.clone()),
        });
        let leaves = leaves.collect::<Result<Vec<_>>>()?;
        let output = self.reference(&leaves)?;
        let found = (&output * &gradient.to_dtype(output.dtype())?)?.sum_all()?.backward()?;
        for (number, leaf) in leaves.iter().enumerate() {
            let part = || found.get(leaf).map_or_else(|| leaf.zeros_like(), |part| Ok(part.detach()));
            gradients.add_with(number, part)?;
        }
        Ok(())
    }

    /// The inputs as all implementations take them: contiguous.
    fn arguments(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        inputs.iter().map(|input| input.contiguous()).collect()
    }

    /// Whether the backward pass depends on the values of an input, where the inputs in `needs` need a gradient.
    fn saves(&self, _input: usize, _needs: &[bool]) -> bool {
        true
    }

    /// Whether loops and kernels of one's own give the gradients of the inputs in `needs`; else the reference does.
    fn has_backward(&self, _needs: &[bool]) -> bool {
        true
    }
}

/// The output of a forward pass, and what the backward pass takes besides the inputs.
pub type Forward = (Tensor, Vec<Tensor>);

/// Own loops for f32 in the host's memory.
pub trait Cpu: Reference {
    /// The output of contiguous inputs, of which those in `needs` need a gradient.
    fn forward_cpu(&self, inputs: &[Tensor], needs: &[bool]) -> Result<Forward>;

    /// Adds the gradients of the inputs, given that of the output, which is contiguous and nobody else's.
    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()>;
}

/// Own kernels, for f32 or bf16 on a GPU.
#[cfg(feature = "cuda")]
pub trait Cuda: Reference {
    /// As [`Cpu::forward_cpu`]; none if there are no kernels for such inputs.
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>>;

    /// As [`Cpu::backward_cpu`].
    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()>;
}

/// Without the feature `cuda` nothing lies on a GPU.
#[cfg(not(feature = "cuda"))]
pub use Reference as Cuda;

/// What the backward pass needs.
pub struct Saved {
    inputs: Vec<Option<Tensor>>,
    /// Of all inputs.
    pub shapes: Vec<Shape>,
    /// What the forward pass left besides.
    pub kept: Vec<Tensor>,
    /// The output's type, which its gradient has.
    dtype: DType,
}

impl Saved {
    /// An input that the operation says it saves.
    pub fn input(&self, number: usize) -> Result<&Tensor> {
        match self.inputs.get(number) {
            Some(Some(input)) => Ok(input),
            _ => bail!("input {number} of an operation was not saved"),
        }
    }

    /// What the forward pass left besides, so many tensors.
    pub fn kept<const N: usize>(&self) -> Result<&[Tensor; N]> {
        match self.kept.first_chunk() {
            Some(kept) => Ok(kept),
            None => bail!("the forward pass of an operation left {} tensors, not {N}", self.kept.len()),
        }
    }
}

/// Runs `op`, and records it where an input needs a gradient.
pub fn apply<O: Cpu + Cuda>(op: O, variables: &[&Variable]) -> Result<Variable> {
    let needs: Vec<bool> = variables.iter().map(|input| input.needs_gradient()).collect();
    let inputs = op.arguments(&variables.iter().map(|input| input.tensor()).collect::<Vec<_>>())?;
    let backend = Backend::of(&inputs);
    let own = match backend {
        Backend::Cpu => Some(op.forward_cpu(&inputs, &needs)?),
        #[cfg(feature = "cuda")]
        Backend::Cuda => op.forward_cuda(&inputs)?,
        Backend::Reference => None,
    };
    let backend = if own.is_some() && op.has_backward(&needs) { backend } else { Backend::Reference };
    let (output, kept) = match own {
        Some(own) => own,
        None => (op.reference(&inputs)?, vec![]),
    };
    let shapes = inputs.iter().map(|input| input.shape().clone()).collect();
    let inputs = inputs.into_iter().enumerate().map(|(number, input)| op.saves(number, &needs).then_some(input));
    let saved = Saved { inputs: inputs.collect(), shapes, kept, dtype: output.dtype() };
    Ok(record(output, variables, move |gradient, gradients| {
        let gradient = gradient.to_dtype(saved.dtype)?.contiguous()?;
        match backend {
            Backend::Cpu => op.backward_cpu(&saved, gradient, gradients),
            #[cfg(feature = "cuda")]
            Backend::Cuda => op.backward_cuda(&saved, gradient, gradients),
            Backend::Reference => {
                let inputs = saved.inputs.into_iter().zip(&saved.shapes).map(|(input, shape)| match input {
                    Some(input) => Ok(input),
                    None => Tensor::zeros(shape, saved.dtype, gradient.device()),
                });
                op.reference_backward(&inputs.collect::<Result<Vec<_>>>()?, &gradient, gradients)
            }
        }
    }))
}
