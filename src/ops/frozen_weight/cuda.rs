//! Quantised weights on a GPU, written out as f32 or bf16 in one pass.
use super::float8::Float8;
use super::{FrozenWeight, Kept};
use crate::kernels::cuda::Arg::{Address, Int, Long};
use crate::kernels::cuda::{Module, module, name_of_type};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Result, Tensor};

static KERNELS: Module = module!("dequantize");
const THREADS: usize = 256;
/// Values that a thread writes.
const VALUES: usize = 8;

/// The values in `dtype`; none where there is no kernel for that, or for how they are kept.
pub fn dequantize(weight: &FrozenWeight, dtype: DType) -> Result<Option<Tensor>> {
    let (device, count) = (weight.device(), weight.dims().iter().product());
    let (true, Some(type_name)) = (device.is_cuda(), name_of_type(dtype)) else { return Ok(None) };
    // SAFETY: the kernel writes every value before anything can read it.
    let new = || unsafe { Tensor::empty(weight.dims(), dtype, &device) };
    let (kernel, at_once, tensors, sizes) = match &weight.kept {
        Kept::Dense(_) => return Ok(None),
        Kept::Blocks(blocks) => {
            let kernel = match blocks.all.dtype() {
                GgmlDType::Q8_0 => "q8_0",
                GgmlDType::Q6K => "q6k",
                GgmlDType::Q4K => "q4_k",
                _ => return Ok(None),
            };
            let address = blocks.all.device_ptr()? as u64 + blocks.offset() as u64;
            (kernel, VALUES, vec![new()?], vec![Address(address), Long(count)])
        }
        Kept::Float8(Float8 { values, scales }) => {
            ("f8", 1, vec![new()?, values.clone(), scales.clone()], vec![Long(count), Int(weight.dims()[1])])
        }
    };
    let (name, grid) = (format!("dequantize_{kernel}_{type_name}"), [count.div_ceil(THREADS * at_once), 1, 1]);
    // SAFETY: the blocks, or the numbers and a scale for every row of them, are those of as many values as the output has.
    unsafe { KERNELS.launch(&name, grid, THREADS, &tensors.iter().collect::<Vec<_>>(), &sizes) }?;
    Ok(tensors.into_iter().next())
}
