//! Quantised weights on a GPU, written out as f32 or bf16 in one pass.
use super::Kept;
use super::blocks::Blocks;
use super::float8::Float8;
use crate::kernels::cuda::Arg::{Address, Int, Long};
use crate::kernels::cuda::{Module, module, output, type_name};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Result, Tensor};

static KERNELS: Module = module!("dequantize");
const THREADS: usize = 256;
/// Values that a thread writes.
const VALUES: usize = 8;

/// The values in `dtype`; none where there is no kernel for that, or for how they are kept.
pub fn dequantize(kept: &Kept, dtype: DType) -> Result<Option<Tensor>> {
    match kept {
        Kept::Dense(_) => Ok(None),
        Kept::Blocks(weight) => of_blocks(weight, dtype),
        Kept::Float8(weight) => of_float8(weight, dtype),
    }
}

fn of_blocks(weight: &Blocks, dtype: DType) -> Result<Option<Tensor>> {
    let kernel = match weight.all.dtype() {
        GgmlDType::Q8_0 => "q8_0",
        GgmlDType::Q6K => "q6k",
        GgmlDType::Q4K => "q4_k",
        _ => return Ok(None),
    };
    if weight.all.device().is_cpu() {
        return Ok(None);
    }
    // SAFETY: the kernel writes every value before anything can read it.
    let out = unsafe { Tensor::empty(weight.dims(), dtype, &weight.all.device()) }?;
    let Some(type_name) = type_name(&[&out]) else { return Ok(None) };
    let (name, count) = (format!("dequantize_{kernel}_{type_name}"), out.elem_count());
    let blocks = weight.all.device_ptr()? as u64 + weight.offset() as u64;
    let grid = [count.div_ceil(THREADS * VALUES), 1, 1];
    // SAFETY: the blocks are those of as many values as the output has.
    unsafe { KERNELS.launch(&name, grid, THREADS, &[&out], &[Address(blocks), Long(count)]) }?;
    Ok(Some(out))
}

fn of_float8(weight: &Float8, dtype: DType) -> Result<Option<Tensor>> {
    let Float8 { values, scales } = weight;
    if !weight.device().is_cuda() {
        return Ok(None);
    }
    let (outer, inner) = values.dims2()?;
    let out = output((outer, inner), dtype, values)?;
    let Some(type_name) = type_name(&[&out]) else { return Ok(None) };
    let (name, count) = (format!("dequantize_f8_{type_name}"), outer * inner);
    let (grid, sizes) = ([count.div_ceil(THREADS), 1, 1], [Long(count), Int(inner)]);
    // SAFETY: the kernel takes as many values as it writes, and a scale for every `inner` of them.
    unsafe { KERNELS.launch(&name, grid, THREADS, &[&out, values, scales], &sizes) }?;
    Ok(Some(out))
}
