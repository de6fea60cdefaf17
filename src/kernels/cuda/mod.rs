//! What operations on an NVIDIA GPU are made of: loading and launching kernels, matrix products, copies to and from the host.
//!
//! `build.rs` compiles every `.cu` file below `src/ops`, which the Rust file beside it launches. A kernel has one owner for
//! every value that it writes and sums in a fixed order, so that training gives the same bits on the same GPU.
pub mod adamw;
pub mod add;
pub mod epilogue;
pub mod memory;
pub mod product;
pub mod transfer;

use candle_core::cuda_backend::cudarc::driver::result::memset_d8_async;
use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use candle_core::cuda_backend::cudarc::driver::{
    CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, DType, Device, Result, Storage, Tensor, bail};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Threads of a warp.
pub const WARP: usize = 32;

/// The kernels of one file.
pub struct Module {
    pub name: &'static str,
    pub image: &'static [u8],
}

/// The kernels of `NAME.cu`.
macro_rules! module {
    ($name:literal) => {
        $crate::kernels::cuda::Module {
            name: $name,
            image: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")),
        }
    };
}
pub(crate) use module;

/// Modules by GPU and name. They keep their GPU's context alive, so that they stay valid.
type Modules = HashMap<(usize, &'static str), Arc<CudaModule>>;
static LOADED: LazyLock<Mutex<Modules>> = LazyLock::new(Mutex::default);

impl Module {
    fn load(&self, stream: &CudaStream) -> Result<Arc<CudaModule>> {
        let context = stream.context();
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(&(context.ordinal(), self.name)) {
            return Ok(module.clone());
        }
        let image = candle_core::cuda_backend::cudarc::nvrtc::Ptx::from_binary(self.image.to_vec());
        let module = context.load_module(image).w()?;
        loaded.insert((context.ordinal(), self.name), module.clone());
        Ok(module)
    }

    /// Launches `kernel` on `grid` blocks of `threads` threads, after what the device was given before: `tensors`, contiguous and
    /// on one GPU, are its first arguments, null where there is none, then comes the `rest`.
    ///
    /// # Safety
    /// The arguments must be what the kernel takes, and what it reads and writes must lie inside the tensors.
    pub unsafe fn launch<'a>(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        tensors: &[impl Into<Option<&'a Tensor>> + Copy],
        rest: &[Arg],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_sharing(kernel, grid, threads, 0, tensors, rest) }
    }

    /// [`Self::launch`] for a kernel that takes the size of its shared memory, in bytes, from the launch.
    ///
    /// # Safety
    /// As of [`Self::launch`]; and the kernel must keep to so much shared memory.
    pub unsafe fn launch_sharing<'a>(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        tensors: &[impl Into<Option<&'a Tensor>> + Copy],
        rest: &[Arg],
    ) -> Result<()> {
        let tensors = || tensors.iter().map(|tensor| -> Option<&Tensor> { (*tensor).into() });
        let Some(first) = tensors().flatten().next().filter(|_| !grid.contains(&0)) else { return Ok(()) };
        let addresses = tensors().map(|tensor| tensor.map_or(Ok(0), start));
        let args = addresses.chain(rest.iter().map(Arg::bits)).collect::<Result<Vec<u64>>>()?;
        let [x, y, z] = grid.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX));
        let stream = device_of(first)?.cuda_stream();
        let function = self.load(&stream)?.load_function(kernel).w()?;
        if shared > 0 {
            let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(limit, shared as i32).w()?;
        }
        let mut builder = stream.launch_builder(&function);
        for arg in &args {
            builder.arg(arg);
        }
        let config =
            LaunchConfig { grid_dim: (x, y, z), block_dim: (threads as u32, 1, 1), shared_mem_bytes: shared as u32 };
        // SAFETY: the caller's promise. Memory is freed in the order of the one stream that a device has, so what the
        // addresses point to lives until the kernel has run.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// An argument of a kernel, by its type there.
pub enum Arg {
    Address(u64),
    Int(usize),
    Long(usize),
    Float(f32),
}

impl Arg {
    /// Its bits. The driver takes as many of the lower ones as the kernel's parameter has: all hosts are little-endian.
    fn bits(&self) -> Result<u64> {
        match *self {
            Self::Int(value) if i32::try_from(value).is_err() => bail!("{value} is too large for a kernel"),
            Self::Int(value) | Self::Long(value) => Ok(value as u64),
            Self::Address(value) => Ok(value),
            Self::Float(value) => Ok(value.to_bits().into()),
        }
    }
}

/// Where a contiguous tensor on a GPU begins.
pub fn start(tensor: &Tensor) -> Result<u64> {
    fn of<T>(slice: &CudaSlice<T>, offset: usize, stream: &CudaStream) -> u64 {
        slice.device_ptr(stream).0 + (offset * size_of::<T>()) as u64
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((offset, _))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("a kernel wants contiguous tensors on the GPU")
    };
    let stream = storage.device.cuda_stream();
    match &storage.slice {
        CudaStorageSlice::F32(slice) => Ok(of(slice, offset, &stream)),
        CudaStorageSlice::BF16(slice) => Ok(of(slice, offset, &stream)),
        CudaStorageSlice::U32(slice) => Ok(of(slice, offset, &stream)),
        CudaStorageSlice::U8(slice) => Ok(of(slice, offset, &stream)),
        CudaStorageSlice::F64(slice) => Ok(of(slice, offset, &stream)),
        CudaStorageSlice::I64(slice) => Ok(of(slice, offset, &stream)),
        CudaStorageSlice::F8E4M3(slice) => Ok(of(slice, offset, &stream)),
        _ => bail!("a kernel got a tensor of {:?}", tensor.dtype()),
    }
}

/// The GPU that a tensor is on.
pub fn device_of(tensor: &Tensor) -> Result<&CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device),
        _ => bail!("a kernel got a tensor that is not on a GPU"),
    }
}

/// The most shared memory that a block may have, in bytes.
pub fn largest_shared_memory(device: &CudaDevice) -> Result<usize> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    Ok(device.cuda_stream().context().attribute(attribute).w()?.max(0) as usize)
}

/// The type of all tensors, as kernels are named after it; none if they differ or there are no kernels for it.
pub fn type_name(tensors: &[impl AsRef<Tensor>]) -> Option<&'static str> {
    let dtype = tensors.first()?.as_ref().dtype();
    let is_one = tensors.iter().all(|tensor| tensor.as_ref().dtype() == dtype);
    if is_one { name_of_type(dtype) } else { None }
}

/// A type, as kernels are named after it; none if there are no kernels for it.
pub fn name_of_type(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::BF16 => Some("bf16"),
        _ => None,
    }
}

/// The largest of `widths` that rows of `width` values divide into and that all tensors are aligned to; else 1.
pub fn vector_width(widths: &[usize], width: usize, tensors: &[&Tensor]) -> Result<usize> {
    for vector in widths {
        let mut fits = width.is_multiple_of(*vector);
        for tensor in tensors {
            fits &= start(tensor)?.is_multiple_of((vector * tensor.dtype().size_in_bytes()) as u64);
        }
        if fits {
            return Ok(*vector);
        }
    }
    Ok(1)
}

/// Values of a type in the sixteen bytes that a thread reads at once.
pub fn widest(tensor: &Tensor) -> usize {
    16 / tensor.dtype().size_in_bytes()
}

/// The tensor, at an address that sixteen bytes divide.
pub fn aligned(tensor: &Tensor) -> Result<Tensor> {
    if start(tensor)?.is_multiple_of(16) { Ok(tensor.clone()) } else { tensor.force_contiguous() }
}

/// A tensor for a kernel to write.
pub fn output(shape: impl Into<candle_core::Shape>, dtype: DType, like: &Tensor) -> Result<Tensor> {
    // SAFETY: the kernel that it is made for writes every value before anything can read it.
    unsafe { Tensor::empty(shape, dtype, like.device()) }
}

/// Fills a contiguous tensor with zeros.
pub fn zero(tensor: &Tensor) -> Result<()> {
    let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
    let stream = device_of(tensor)?.cuda_stream();
    stream.context().bind_to_thread().w()?;
    // SAFETY: the tensor is as large as its values, all of which are zero where all their bytes are.
    unsafe { memset_d8_async(start(tensor)?, 0, bytes, stream.cu_stream()) }.w()
}
