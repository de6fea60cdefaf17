//! Copies between host and GPU that the host does not wait for.
//!
//! They go through page-locked memory, which the GPU reads and writes by itself, and lie in the order of the device's
//! one stream like everything else. From other memory the driver copies when the GPU has come that far, and the host
//! stands still until then.
use super::start;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{memcpy_dtoh_async, memcpy_htod_async};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice};
use candle_core::{CudaDevice, Device, Result, Shape, Tensor, WithDType, bail};
use std::sync::{Mutex, PoisonError};

/// The least that is locked at a time, in bytes.
const LEAST: usize = 1 << 16;

/// Buffers to be used again: to lock memory is slow, and the driver may wait for the GPU to do it.
static FREE: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

/// Page-locked memory.
struct Buffer {
    memory: PinnedHostSlice<u8>,
    /// When the last copy that uses it is done; none before the first.
    done: Option<CudaEvent>,
}

impl Buffer {
    /// A buffer of so many bytes at least that no copy uses any more.
    fn take(bytes: usize, stream: &CudaStream) -> Result<Self> {
        let context = stream.context();
        context.bind_to_thread().w()?;
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut smallest: Option<usize> = None;
        for (place, buffer) in free.iter().enumerate() {
            let is_better = smallest.is_none_or(|found: usize| buffer.memory.len() < free[found].memory.len());
            let fits = buffer.memory.context() == context && buffer.memory.len() >= bytes;
            if is_better && fits && buffer.is_done()? {
                smallest = Some(place);
            }
        }
        if let Some(place) = smallest {
            return Ok(free.swap_remove(place));
        }
        let size = bytes.next_power_of_two().max(LEAST);
        // Plain flags: the host reads from some of these buffers, which write-combined memory makes very slow.
        // SAFETY: nothing reads the memory before it is written.
        Ok(Self { memory: unsafe { context.alloc_pinned_with_flags(size, 0) }.w()?, done: None })
    }

    fn is_done(&self) -> Result<bool> {
        self.done.as_ref().map_or(Ok(true), |done| done.try_is_complete().w())
    }

    /// Its memory, to be used by the host: waits for the copy under way.
    fn bytes(&mut self) -> Result<&mut [u8]> {
        if let Some(done) = &self.done {
            done.synchronize().w()?;
        }
        self.memory.as_mut_slice().w()
    }

    /// Notes that what the stream has been given so far uses it.
    fn in_use(&mut self, stream: &CudaStream) -> Result<()> {
        self.done = Some(stream.record_event(None).w()?);
        Ok(())
    }

    fn give_back(self) {
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(done) = &self.done {
            // If that fails the GPU is lost, and every call after it says so.
            let _ = done.synchronize();
        }
    }
}

/// Values as a tensor on the GPU, there by the time that anything reads it.
pub fn upload<T: WithDType>(values: &[T], shape: impl Into<Shape>, device: &CudaDevice) -> Result<Tensor> {
    let shape = shape.into();
    if shape.elem_count() != values.len() {
        bail!("{} values do not fill {shape:?}", values.len());
    }
    // SAFETY: every value is written below before anything can read it.
    let tensor = unsafe { Tensor::empty(shape, T::DTYPE, &Device::Cuda(device.clone()))? };
    if values.is_empty() {
        return Ok(tensor);
    }
    let size = size_of_val(values);
    // SAFETY: numbers, all of whose bytes are written.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size) };
    let stream = device.cuda_stream();
    let mut buffer = Buffer::take(size, &stream)?;
    let staged = &mut buffer.bytes()?[..size];
    staged.copy_from_slice(bytes);
    // SAFETY: the tensor is as large as its values; the buffer is not written again before the copy is done.
    unsafe { memcpy_htod_async(start(&tensor)?, staged, stream.cu_stream()) }.w()?;
    buffer.in_use(&stream)?;
    buffer.give_back();
    Ok(tensor)
}

/// Numbers on their way to the host.
pub struct Download {
    buffer: Buffer,
    size: usize,
}

impl Download {
    /// Starts copying a contiguous tensor of f32.
    pub fn start(tensor: &Tensor) -> Result<Self> {
        let size = tensor.elem_count() * size_of::<f32>();
        let stream = super::device_of(tensor)?.cuda_stream();
        let mut buffer = Buffer::take(size, &stream)?;
        // SAFETY: the tensor is as large as its values, and freed in the stream's order; nothing reads the buffer before
        // the copy is done.
        unsafe { memcpy_dtoh_async(&mut buffer.bytes()?[..size], start(tensor)?, stream.cu_stream()) }.w()?;
        buffer.in_use(&stream)?;
        Ok(Self { buffer, size })
    }

    /// Waits for the values, and for nothing that the GPU was given after them.
    pub fn values(mut self) -> Result<Vec<f32>> {
        let bytes = &self.buffer.bytes()?[..self.size];
        let values = bytes.as_chunks().0.iter().copied().map(f32::from_ne_bytes).collect();
        self.buffer.give_back();
        Ok(values)
    }
}
