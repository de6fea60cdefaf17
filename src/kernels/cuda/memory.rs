//! The driver's pool of memory, which candle's tensors come from.
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{device, mem_get_info, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute as Attribute, CUmemoryPool};
use candle_core::{CudaDevice, Result};

fn pool(of: &CudaDevice) -> Result<CUmemoryPool> {
    let stream = of.cuda_stream();
    stream.context().bind_to_thread().w()?;
    // SAFETY: the device is one that is open.
    unsafe { device::get_default_mem_pool(stream.context().cu_device()) }.w()
}

fn attribute(of: &CudaDevice, attribute: Attribute) -> Result<u64> {
    let mut value = 0u64;
    // SAFETY: the attributes asked for here are 64 bits wide.
    unsafe { mem_pool::get_attribute(pool(of)?, attribute, (&raw mut value).cast()) }.w()?;
    Ok(value)
}

fn set_attribute(of: &CudaDevice, attribute: Attribute, mut value: u64) -> Result<()> {
    // SAFETY: the attributes set here are 64 bits wide.
    unsafe { mem_pool::set_attribute(pool(of)?, attribute, (&raw mut value).cast()) }.w()
}

/// Lets the pool keep what is freed. As it comes it gives all of it back to the driver whenever the host waits for the
/// GPU, and a step would begin with asking for it again.
pub fn keep_freed(of: &CudaDevice) -> Result<()> {
    set_attribute(of, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
}

/// Bytes in all, bytes that the driver has free, and bytes that the pool keeps and nobody uses.
pub fn usage(of: &CudaDevice) -> Result<[u64; 3]> {
    let reserved = attribute(of, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let kept = reserved.saturating_sub(attribute(of, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?);
    let (free, total) = mem_get_info().w()?;
    Ok([total as u64, free as u64, kept])
}

/// The most that was in use at a time: what PyTorch calls `max_memory_allocated`. The context, the kernels and cuBLAS's
/// workspace are not in it, here as there.
pub fn peak(of: &CudaDevice) -> Result<u64> {
    attribute(of, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
}

/// Makes [`peak`] begin anew, from what is in use now.
pub fn forget_peak(of: &CudaDevice) -> Result<()> {
    // Zero is all that it may be set to.
    set_attribute(of, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}
