//! GELU, SwiGLU and the gated residual in candle's operations.
use super::{GatedResidual, Gelu, SwiGlu};
use crate::ops::backend::Reference;
use candle_core::{D, Result, Tensor};

impl Reference for Gelu {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        inputs[0].gelu()
    }
}

impl Reference for SwiGlu {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (_, width) = Self::output(&inputs[0]);
        inputs[0].narrow(D::Minus1, 0, width)?.silu()? * inputs[0].narrow(D::Minus1, width, width)?
    }
}

impl Reference for GatedResidual {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        &inputs[0] + inputs[1].broadcast_mul(&inputs[2].unsqueeze(1)?)?
    }

    fn saves(&self, input: usize, needs: &[bool]) -> bool {
        input == 2 || !self.has_backward(needs)
    }

    fn has_backward(&self, needs: &[bool]) -> bool {
        !needs[2]
    }
}
