//! GELU and the gated residual in candle's operations.
use super::{GatedResidual, Gelu};
use crate::ops::backend::Reference;
use candle_core::{Result, Tensor};

impl Reference for Gelu {
    const NAME: &'static str = "gelu";

    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        inputs[0].gelu()
    }
}

impl Reference for GatedResidual {
    const NAME: &'static str = "gated-residual";

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
