//! Sums in place and over batch entries.
use super::Arg::{Int, Long};
use super::{Module, module, vector_width, widest};
use candle_core::{DType, Result, Tensor, bail};

static KERNELS: Module = module!("add");
const THREADS: usize = 256;

/// `sum += part`, of one type or in f32 and bf16. False where there is no kernel for these tensors. Nobody else may hold
/// `sum`.
pub fn add_in_place(sum: &Tensor, part: &Tensor) -> Result<bool> {
    let kernel = match (sum.dtype(), part.dtype()) {
        (DType::F32, DType::F32) => "add_f32_f32",
        (DType::F32, DType::BF16) => "add_f32_bf16",
        (DType::BF16, DType::BF16) => "add_bf16_bf16",
        _ => return Ok(false),
    };
    if !sum.device().is_cuda() || !part.device().is_cuda() || !sum.is_contiguous() || sum.dims() != part.dims() {
        return Ok(false);
    }
    let (part, count) = (part.contiguous()?, sum.elem_count());
    let vector = vector_width(&[widest(sum)], count, &[sum, &part])?;
    let (name, grid) = (format!("{kernel}_{vector}"), [count.div_ceil(THREADS * vector), 1, 1]);
    // SAFETY: two tensors of `count` values, of the types in the kernel's name.
    unsafe { KERNELS.launch(&name, grid, THREADS, &[sum, &part], &[Long(count)])? }
    Ok(true)
}

/// Writes the sum over the first dimension of `parts` `[entries, …]` over `out` `[…]`, or adds it to what is there; both in
/// f32. Nobody else may hold `out`.
pub fn sum_entries(parts: &Tensor, out: &Tensor, adds: bool) -> Result<()> {
    let (entries, count) = (parts.dim(0)?, out.elem_count());
    if parts.elem_count() != entries * count || [parts, out].map(Tensor::dtype) != [DType::F32; 2] {
        bail!("sums of {:?} {:?} into {:?} {:?}", parts.dims(), parts.dtype(), out.dims(), out.dtype());
    }
    let vector = vector_width(&[widest(out)], count, &[parts, out])?;
    let (name, grid) = (format!("sum_entries_{vector}"), [count.div_ceil(THREADS * vector), 1, 1]);
    let sizes = [Long(count), Int(entries), Int(adds.into())];
    // SAFETY: `entries` times `count` values, and `count`.
    unsafe { KERNELS.launch(&name, grid, THREADS, &[parts, out], &sizes) }
}
