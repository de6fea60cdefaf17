//! Where a backward pass begins with a gradient that was found elsewhere.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// A scalar, 0 in f32, whose gradient by `tensor` is `gradient`, of the same shape: what `Σ tensor·gradient` would have,
/// without products and sums that nobody wants. It may be added to other losses, and must not be scaled.
pub fn seed(tensor: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if tensor.shape() != gradient.shape() {
        bail!("seed: a tensor {:?} with a gradient {:?}", tensor.dims(), gradient.dims());
    }
    tensor.apply_op1(Seed(gradient.detach().to_dtype(tensor.dtype())?))
}

struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &candle_core::CudaStorage, _: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let device = storage.device.clone();
        let zero = device.alloc_zeros::<f32>(1)?;
        Ok((candle_core::CudaStorage::wrap_cuda_slice(zero, device), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{normal, values};
    use candle_core::{DType, Device, Var};

    /// The gradients of what a product with the seed's gradient, summed, has: in their bits.
    fn check(device: &Device, dtype: DType) {
        let place = |seed| normal(seed, &[3, 5]).to_device(device).unwrap().to_dtype(dtype).unwrap();
        let x = Var::from_tensor(&place(1)).unwrap();
        let (tensor, gradient) = ((x.as_tensor() * 3.0).unwrap().t().unwrap(), place(2).t().unwrap());
        let other = x.as_tensor().to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap();
        let pulled = |scalar: Tensor| {
            let grads = (scalar + &other).unwrap().backward().unwrap();
            values(&grads.get(x.as_tensor()).unwrap().to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap())
        };
        let summed = (&tensor * &gradient).unwrap().sum_all().unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(pulled(seed(&tensor, &gradient).unwrap()), pulled(summed));
    }

    #[test]
    fn a_seed_has_the_gradient_that_it_was_given() {
        check(&Device::Cpu, DType::F32);
        #[cfg(feature = "cuda")]
        if let Some(device) = crate::ops::cuda::tests::device("seed") {
            check(&device, DType::F32);
            check(&device, DType::BF16);
        }
        let (tensor, gradient) = (normal(1, &[2, 3]), normal(2, &[3, 2]));
        assert!(seed(&tensor, &gradient).is_err(), "a gradient of another shape");
    }
}
