//! From the configured device to the one that tensors live on.
use crate::config::DeviceChoice;
use crate::error::{Error, Result};
use candle_core::Device;

impl DeviceChoice {
    /// Opens the device. `auto` is the first CUDA device if this build and this machine have one, else the CPU;
    /// a device that was asked for by name is used or refused, never replaced.
    pub fn open(self) -> Result<Device> {
        let has_cuda = candle_core::utils::cuda_is_available();
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if !has_cuda => Ok(Device::Cpu),
            Self::Auto => Ok(Device::new_cuda(0).unwrap_or_else(|e| {
                tracing::info!("no CUDA device on this machine, the CPU it is ({e})");
                Device::Cpu
            })),
            Self::Cuda(_) if !has_cuda => Err(Error::Usage(format!(
                "device {self}: this program was built without CUDA; build it with --features cuda, or use cpu"
            ))),
            Self::Cuda(index) => Device::new_cuda(index).map_err(|e| Error::Failed(format!("device {self}: {e}"))),
        }
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
