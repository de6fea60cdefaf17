//! Rotary positions in candle's operations.
use super::Rotary;
use crate::ops::backend::Reference;
use candle_core::{DType, Result, Tensor};

impl Reference for Rotary {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let ((batch, tokens, width), (turned, pairs)) = (x.dims3()?, self.table.cosines.dims2()?);
        let first = x.narrow(1, 0, turned)?.to_dtype(DType::F32)?;
        let first = first.reshape((batch, turned, width / (2 * pairs), pairs, 2))?;
        let (even, odd) = (first.narrow(4, 0, 1)?, first.narrow(4, 1, 1)?);
        let by_pair = |table: &Tensor| table.reshape((1, turned, 1, pairs, 1));
        let (cosines, sines) = (by_pair(&self.table.cosines)?, by_pair(&self.table.sines)?);
        let turned_even = (even.broadcast_mul(&cosines)? - odd.broadcast_mul(&sines)?)?;
        let turned_odd = (odd.broadcast_mul(&cosines)? + even.broadcast_mul(&sines)?)?;
        let first = Tensor::cat(&[turned_even, turned_odd], 4)?.reshape((batch, turned, width))?.to_dtype(x.dtype())?;
        Tensor::cat(&[first, x.narrow(1, turned, tokens - turned)?], 1)
    }

    /// Turning back needs nothing but the angles.
    fn saves(&self, _: usize, _: &[bool]) -> bool {
        false
    }
}
