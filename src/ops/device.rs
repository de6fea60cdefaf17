//! From the configured device to the one that tensors live on, and what goes there.
use crate::config::DeviceChoice;
use crate::system::error::{Error, Result};
use crate::system::launch::Launch;
use candle_core::{Device, Shape, Tensor, WithDType};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

impl DeviceChoice {
    /// Opens the device. `auto` is a CUDA device if this build and this machine have one, else the CPU; the first, or of
    /// several processes on this machine each its own. A device that was asked for by name is used or refused, never
    /// replaced.
    pub fn open(self) -> Result<Device> {
        let has_cuda = candle_core::utils::cuda_is_available();
        let launch = Launch::from_environment()?;
        let (local_rank, local_size) = launch.map_or((0, 1), |launch| (launch.local_rank, launch.local_size));
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if !has_cuda => Ok(Device::Cpu),
            Self::Auto if local_size > 1 && gpu_count() > 0 => open_cuda(gpu_of_process(local_rank, local_size)?)
                .map_err(|e| Error::Failed(format!("device auto: {e}"))),
            Self::Auto => Ok(open_cuda(0).unwrap_or_else(|e| {
                tracing::info!("no CUDA device on this machine, the CPU it is ({e})");
                Device::Cpu
            })),
            Self::Cuda(_) if !has_cuda => Err(Error::Usage(format!(
                "device {self}: this program was built without CUDA; build it with --features cuda, or use cpu"
            ))),
            Self::Cuda(_) if local_size > 1 => Err(Error::Usage(format!(
                "device {self}: each of the {local_size} processes on this machine needs its own; auto gives it"
            ))),
            Self::Cuda(index) => open_cuda(index).map_err(|e| Error::Failed(format!("device {self}: {e}"))),
        }
    }
}

/// The GPU of process `local_rank` of this machine's. Where the launcher shows each process one GPU, that is its own.
///
/// # Errors
/// There are fewer GPUs than processes.
pub fn gpu_of_process(local_rank: usize, local_size: usize) -> Result<usize> {
    match gpu_count() {
        1 => Ok(0),
        count if local_rank < count => Ok(local_rank),
        count => {
            let problem = format!("{local_size} processes on this machine, but {count} GPUs");
            Err(Error::Usage(format!("{problem}; start one for each GPU, or set device = \"cpu\"")))
        }
    }
}

/// How many GPUs this process sees.
pub fn gpu_count() -> usize {
    #[cfg(feature = "cuda")]
    let count = candle_core::cuda_backend::cudarc::driver::CudaContext::device_count().unwrap_or(0);
    #[cfg(not(feature = "cuda"))]
    let count = 0;
    usize::try_from(count).unwrap_or(0)
}

/// GPUs that are open. Whoever asks for one gets the same, for what two streams were given is done in any order.
static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());

/// Opens GPU `index`, with a stream of its own: whatever thread gives it work, it is done in the order given.
pub fn open_cuda(index: usize) -> candle_core::Result<Device> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&index) {
        return Ok(device.clone());
    }
    let device = Device::new_cuda_with_stream(index)?;
    #[cfg(feature = "cuda")]
    {
        let device = device.as_cuda_device()?;
        // SAFETY: there is no second stream that tensors would have to be guarded from by events.
        unsafe { device.disable_event_tracking() };
        crate::kernels::cuda::memory::keep_freed(device)?;
    }
    open.insert(index, device.clone());
    Ok(device)
}

/// Values as a tensor on `device`. The host does not wait for a GPU to take them.
pub fn upload<'a, T: WithDType>(
    values: impl Into<Cow<'a, [T]>>,
    shape: impl Into<Shape>,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let values = values.into();
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::kernels::cuda::transfer::upload(&values, shape, device),
        _ => Tensor::from_vec(values.into_owned(), shape.into(), device),
    }
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct GpuMemory {
    /// All that it has.
    pub total: u64,
    /// What the driver has free.
    pub free: u64,
    /// What the driver's pool keeps and no tensor uses.
    pub kept: u64,
}

/// Memory of a GPU; none for another device, or where the driver does not tell.
pub fn gpu_memory(device: &Device) -> Option<GpuMemory> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let [total, free, kept] = crate::kernels::cuda::memory::usage(device).ok()?;
            Some(GpuMemory { total, free, kept })
        }
        _ => None,
    }
}

/// The most memory that tensors had on a GPU at a time, in bytes; none for another device.
pub fn peak_gpu_bytes(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::kernels::cuda::memory::peak(device).ok(),
        _ => None,
    }
}

/// Whether matrix products on a GPU take bias and GELU along from now on, or leave them to kernels of their own: for
/// comparisons of the two. With `SEG4DIFF_NO_EPILOGUE` set they never do.
pub fn take_epilogues(_are_taken: bool) {
    #[cfg(feature = "cuda")]
    crate::kernels::cuda::epilogue::take_epilogues(_are_taken);
}

/// Makes [`peak_gpu_bytes`] begin anew, from what tensors have now.
pub fn forget_gpu_peak(device: &Device) -> candle_core::Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::kernels::cuda::memory::forget_peak(device),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_device_is_used_or_refused() {
        assert!(matches!(DeviceChoice::Cpu.open(), Ok(Device::Cpu)));
        if !candle_core::utils::cuda_is_available() {
            assert!(matches!(DeviceChoice::Auto.open(), Ok(Device::Cpu)));
            let refused = DeviceChoice::Cuda(1).open();
            assert!(matches!(refused, Err(Error::Usage(text)) if text.contains("cuda:1")));
        }
    }
}
