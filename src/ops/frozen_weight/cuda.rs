//! Quantised weights on a GPU, written out as f32 or bf16 in one pass.
use super::Kept;
use super::blocks::Blocks;
use super::float8::Float8;
use crate::kernels::cuda::{Arg, Module, address, device_of, int, long, module, output, start, type_name};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor};

static KERNELS: Module = module!("dequantize");
const THREADS: usize = 256;
/// Values that a thread writes.
const VALUES: usize = 8;

/// The values in `dtype`; none where there is no kernel for that, or for how they are kept.
pub fn dequantize(kept: &Kept, dtype: DType) -> Result<Option<Tensor>> {
    match kept {
        Kept::Dense(_) => Ok(None),
        Kept::Blocks(weight, _) => of_blocks(weight, dtype),
        Kept::Float8(weight, _) => of_float8(weight, dtype),
    }
}

fn of_blocks(weight: &Blocks, dtype: DType) -> Result<Option<Tensor>> {
    let kernel = match weight.all.dtype() {
        GgmlDType::Q8_0 => "q8_0",
        GgmlDType::Q6K => "q6k",
        GgmlDType::Q4K => "q4_k",
        _ => return Ok(None),
    };
    let Device::Cuda(device) = weight.all.device() else { return Ok(None) };
    // SAFETY: the kernel writes every value before anything can read it.
    let out = unsafe { Tensor::empty(weight.dims(), dtype, &Device::Cuda(device.clone())) }?;
    let Some(type_name) = type_name(&[&out]) else { return Ok(None) };
    let count = out.elem_count();
    let blocks = weight.all.device_ptr()? as u64 + weight.offset() as u64;
    let args = [Arg::Address(blocks), address(&out)?, long(count)];
    let grid = [count.div_ceil(THREADS * VALUES), 1, 1];
    // SAFETY: the blocks are those of as many values as the output has.
    unsafe { KERNELS.launch(&device, &format!("dequantize_{kernel}_{type_name}"), grid, THREADS, &args) }?;
    Ok(Some(out))
}

fn of_float8(weight: &Float8, dtype: DType) -> Result<Option<Tensor>> {
    if !weight.device().is_cuda() {
        return Ok(None);
    }
    let (outer, inner) = weight.values.dims2()?;
    let out = output((outer, inner), dtype, &weight.values)?;
    let Some(type_name) = type_name(&[&out]) else { return Ok(None) };
    let count = outer * inner;
    let args =
        [Arg::Address(start(&weight.values)?), address(&weight.scales)?, address(&out)?, long(count), int(inner)?];
    let grid = [count.div_ceil(THREADS), 1, 1];
    let device = device_of(&weight.values)?;
    // SAFETY: the kernel takes as many values as it writes, and a scale for every `inner` of them.
    unsafe { KERNELS.launch(device, &format!("dequantize_f8_{type_name}"), grid, THREADS, &args) }?;
    Ok(Some(out))
}
