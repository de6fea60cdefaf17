//! Which of an operation's implementations runs.
use crate::autograd::Gradients;
use candle_core::{DType, Result, Tensor, Var};

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
    /// For these inputs.
    pub fn of(inputs: &[&Tensor]) -> Self {
        let are = |test: fn(&Tensor) -> bool| inputs.iter().all(|input| test(input));
        if are(|input| input.device().is_cpu() && input.dtype() == DType::F32) {
            return Self::Cpu;
        }
        #[cfg(feature = "cuda")]
        if are(|input| input.device().is_cuda()) && super::cuda::type_name(inputs).is_some() {
            return Self::Cuda;
        }
        Self::Reference
    }
}

/// Adds the gradients of `forward`, which is made of candle's operations, by candle's own differentiation. It runs `forward`
/// again.
pub fn reference_backward(
    forward: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    gradient: &Tensor,
    gradients: &mut Gradients,
) -> Result<()> {
    let leaves = inputs.iter().enumerate().map(|(number, input)| match gradients.needs(number) {
        true => Ok(Var::from_tensor(input)?.into_inner()),
        false => Ok(input.clone()),
    });
    let leaves = leaves.collect::<Result<Vec<_>>>()?;
    let output = forward(&leaves)?;
    let found = (&output * &gradient.to_dtype(output.dtype())?)?.sum_all()?.backward()?;
    for (number, leaf) in leaves.iter().enumerate() {
        if gradients.needs(number) {
            let part = found.get(leaf).map_or_else(|| leaf.zeros_like(), |part| Ok(part.detach()))?;
            gradients.add(number, part)?;
        }
    }
    Ok(())
}
