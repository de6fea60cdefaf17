//! Matrix products by cuBLASLt that do more to a value before they write it: bias, GELU, GELU's derivative.
//!
//! By a kernel of its own each is another pass over the output. In a step of `sd3-medium` (batch 4, 1024 pixels, bf16) this
//! saves 25 of some 175 GB of memory traffic: benches/README.md.
use super::product::{Matrix, Product, size};
use super::{device_of, start};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys::{
    self, cublasLtEpilogue_t as Kind, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Limit, cublasLtMatrixLayoutAttribute_t as LayoutAttribute,
};
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{CudaDevice, DType, Error, Result, Tensor, bail};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

/// What is done to a product's values before they are rounded, once, to the output's type: that of all tensors here.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// Adds a bias `[columns]`.
    Bias(&'a Tensor),
    /// Adds a bias `[columns]`, if there is one, writes the sums over `kept` `[rows, columns]`, too, and takes their GELU
    /// (tanh form).
    Gelu { bias: Option<&'a Tensor>, kept: &'a Tensor },
    /// Multiplies by GELU's derivative at `kept` `[rows, columns]`.
    GeluBackward { kept: &'a Tensor },
}

impl<'a> Epilogue<'a> {
    /// cuBLASLt's name for it, its bias, and what it keeps or kept.
    fn parts(&self) -> (Kind, Option<&'a Tensor>, Option<&'a Tensor>) {
        match *self {
            Self::Bias(bias) => (Kind::CUBLASLT_EPILOGUE_BIAS, Some(bias), None),
            Self::Gelu { bias: bias @ Some(_), kept } => (Kind::CUBLASLT_EPILOGUE_GELU_AUX_BIAS, bias, Some(kept)),
            Self::Gelu { bias: None, kept } => (Kind::CUBLASLT_EPILOGUE_GELU_AUX, None, Some(kept)),
            Self::GeluBackward { kept } => (Kind::CUBLASLT_EPILOGUE_DGELU, None, Some(kept)),
        }
    }
}

static ARE_TAKEN: AtomicBool = AtomicBool::new(true);

/// Whether products take epilogues from now on, for comparisons. With `SEG4DIFF_NO_EPILOGUE` set they never do.
pub fn take_epilogues(are_taken: bool) {
    ARE_TAKEN.store(are_taken, Ordering::Relaxed);
}

fn are_taken() -> bool {
    static MAY_BE: LazyLock<bool> = LazyLock::new(|| std::env::var_os("SEG4DIFF_NO_EPILOGUE").is_none());
    *MAY_BE && ARE_TAKEN.load(Ordering::Relaxed)
}

/// Whether epilogues with GELU gain on this GPU. On Hopper cuBLASLt's kernels have them; on Ampere (karpathy/llm.c, pull
/// request 338) and on Blackwell's small GPUs (sgl-project/sglang, 34350) they took longer than a pass of their own.
pub fn gains_by_gelu(device: &CudaDevice) -> Result<bool> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    Ok(device.cuda_stream().context().attribute(attribute).w()? == 9)
}

/// Bytes that divide all addresses and rows: the most that a thread reads at once. Told to cuBLASLt, it makes the choice
/// of an algorithm one by shape alone.
const ALIGNMENT: usize = 16;
/// Values that divide the width of what an epilogue with GELU keeps, for cuBLASLt's CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD.
const KEPT_WIDTH: usize = 8;
/// What NVIDIA recommends for Hopper, in bytes.
const WORKSPACE: usize = 32 << 20;

impl Product<'_> {
    /// Writes the product with its epilogue over `out` `[rows, columns]`. False, and then nothing is written, where cuBLASLt
    /// has no algorithm for it or none that gains. Nobody else may hold `out` and what the epilogue writes.
    ///
    /// The same shape has the same algorithm, and sums in a fixed order.
    pub fn write_with(&self, out: Matrix, epilogue: Epilogue) -> Result<bool> {
        if !self.writes_to(out)? {
            return Ok(true);
        }
        if !are_taken() || !self.suits(out, epilogue)? {
            return Ok(false);
        }
        let device = device_of(out.tensor)?;
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        // NVIDIA: a cuBLAS handle can be used in the place of a cuBLASLt handle with a simple cast.
        let blas = device.cublas_handle();
        let handle: sys::cublasLtHandle_t = (*blas.handle()).cast();
        let described = Described::new(self, out, epilogue)?;

        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        let gpu = gpus.entry(stream.context().ordinal()).or_default();
        let strides = [self.a, self.b, out].map(|matrix| (matrix.width, matrix.entry, matrix.is_transposed));
        let Self { shape, entries, .. } = *self;
        let key = Key { dtype: out.tensor.dtype(), shape, entries, strides, kind: epilogue.parts().0 };
        let found = *gpu.algorithms.entry(key).or_insert_with(|| described.algorithm(handle).ok());
        let Some(sys::cublasLtMatmulHeuristicResult_t { algo, workspaceSize: bytes, .. }) = found else {
            return Ok(false);
        };
        if bytes > 0 && gpu.workspace.is_none() {
            // SAFETY: nothing reads what nothing has written.
            gpu.workspace = Some(unsafe { stream.alloc(WORKSPACE) }.w()?);
        }
        let workspace = gpu.workspace.as_ref().map_or(0, |workspace| workspace.device_ptr(&stream).0);
        let (scale, keep) = (self.scale as f32, 0f32);
        // SAFETY: matrices of these sizes within their tensors, on the GPU whose stream this is; memory is freed in its
        // order, and so the workspace is used by one product after the other.
        let done = unsafe {
            result::matmul(
                handle,
                described.product.0,
                (&raw const scale).cast(),
                (&raw const keep).cast(),
                self.b.start()? as *const _,
                described.b.0,
                self.a.start()? as *const _,
                described.a.0,
                out.start()? as *const _,
                described.out.0,
                out.start()? as *mut _,
                described.out.0,
                &raw const algo,
                workspace as *mut _,
                if workspace == 0 { 0 } else { WORKSPACE },
                stream.cu_stream().cast(),
            )
        };
        use sys::cublasStatus_t::{CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED};
        match done {
            Err(CublasError(CUBLAS_STATUS_INVALID_VALUE | CUBLAS_STATUS_NOT_SUPPORTED)) => {
                gpu.algorithms.insert(key, None);
                Ok(false)
            }
            done => done.map(|()| true).map_err(failed),
        }
    }

    /// Whether the tensors are as cuBLASLt wants them, and the epilogue is worth it.
    fn suits(&self, out: Matrix, epilogue: Epilogue) -> Result<bool> {
        let Self { shape: (rows, _, columns), entries, .. } = *self;
        let dtype = out.tensor.dtype();
        let (_, bias, kept) = epilogue.parts();
        if bias.is_some_and(|bias| bias.elem_count() != columns)
            || kept.is_some_and(|kept| entries != 1 || kept.elem_count() != rows * columns)
        {
            bail!("{entries} products {:?} with a bias {bias:?}, keeping {kept:?}", self.shape);
        }
        // Its tanh is the GPU's approximation, with an error of 2⁻¹¹: less than bf16's, but too much for f32.
        if kept.is_some() && (dtype != DType::BF16 || !gains_by_gelu(device_of(out.tensor)?)?) {
            return Ok(false);
        }
        let mut suits = kept.is_none() || columns.is_multiple_of(KEPT_WIDTH);
        for matrix in [self.a, self.b, out] {
            suits &= matrix.tensor.dtype() == dtype;
            suits &= (matrix.width * dtype.size_in_bytes()).is_multiple_of(ALIGNMENT);
            suits &= matrix.start()?.is_multiple_of(ALIGNMENT as u64);
        }
        for tensor in [bias, kept].into_iter().flatten() {
            suits &= tensor.dtype() == dtype && start(tensor)?.is_multiple_of(ALIGNMENT as u64);
        }
        Ok(suits)
    }
}

/// What the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    dtype: DType,
    shape: (usize, usize, usize),
    entries: usize,
    /// Of a, b and the output: width, values of an entry, whether transposed.
    strides: [(usize, usize, bool); 3],
    kind: Kind,
}

/// What is kept for a GPU, for the one stream that it has.
#[derive(Default)]
struct Gpu {
    /// None where cuBLASLt has no algorithm.
    algorithms: HashMap<Key, Option<sys::cublasLtMatmulHeuristicResult_t>>,
    /// Made for the first algorithm that needs one.
    workspace: Option<CudaSlice<u8>>,
}

/// By the GPU's number.
static GPUS: LazyLock<Mutex<HashMap<usize, Gpu>>> = LazyLock::new(Mutex::default);

fn failed(error: CublasError) -> Error {
    Error::msg(format!("cuBLASLt: {error}"))
}

/// A product as cuBLASLt takes it. A matrix by rows is its transpose by columns, which cuBLASLt's are: outᵀ = bᵀ·aᵀ.
struct Described {
    product: Description,
    a: Layout,
    b: Layout,
    out: Layout,
}

impl Described {
    fn new(product: &Product, out: Matrix, epilogue: Epilogue) -> Result<Self> {
        let Product { shape: (rows, inner, columns), entries, a, b, .. } = *product;
        let (kind, bias, kept) = epilogue.parts();
        let (sums, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let described = Self {
            product: Description(result::create_matmul_desc(sums, scale).map_err(failed)?),
            a: layout(a, (rows, inner), entries)?,
            b: layout(b, (inner, columns), entries)?,
            out: layout(out, (rows, columns), entries)?,
        };
        described.product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(b.is_transposed))?;
        described.product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(a.is_transposed))?;
        described.product.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, kind as u32)?;
        if let Some(bias) = bias {
            described.product.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, start(bias)?)?;
        }
        if let Some(kept) = kept {
            described.product.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, start(kept)?)?;
            described.product.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, columns as i64)?;
        }
        Ok(described)
    }

    /// cuBLASLt's first choice among those that sum in a fixed order: partial sums in f32 in the workspace, or none.
    fn algorithm(&self, handle: sys::cublasLtHandle_t) -> Result<sys::cublasLtMatmulHeuristicResult_t> {
        let limits = Limits(result::create_matmul_pref().map_err(failed)?);
        limits.set(Limit::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        limits.set(Limit::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme)?;
        for limit in [
            Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            limits.set(limit, ALIGNMENT as u32)?;
        }
        let (product, out) = (self.product.0, self.out.0);
        // SAFETY: all of these live.
        unsafe { result::get_matmul_algo_heuristic(handle, product, self.b.0, self.a.0, out, out, limits.0) }
            .map_err(failed)
    }
}

fn layout(matrix: Matrix, (rows, columns): (usize, usize), entries: usize) -> Result<Layout> {
    let dtype = match matrix.tensor.dtype() {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        other => bail!("a product of {other:?} on a GPU"),
    };
    let [rows, columns] = if matrix.is_transposed { [columns, rows] } else { [rows, columns] }.map(|side| side as u64);
    let layout = Layout(result::create_matrix_layout(dtype, columns, rows, matrix.width as i64).map_err(failed)?);
    layout.set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, size(entries)?)?;
    layout.set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, matrix.entry as i64)?;
    Ok(layout)
}

/// What cuBLASLt keeps in memory of its own.
macro_rules! owned {
    ($name:ident, $handle:ident, $attribute:ident, $set:ident, $destroy:ident) => {
        struct $name(sys::$handle);

        impl $name {
            fn set<T: Copy>(&self, attribute: $attribute, value: T) -> Result<()> {
                let (value, bytes) = ((&raw const value).cast(), size_of::<T>());
                // SAFETY: so many bytes of the value are read; cuBLASLt refuses another number than it expects.
                unsafe { result::$set(self.0, attribute, value, bytes) }.map_err(failed)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: it lives, and nobody else has it. If this fails there is nothing left to do.
                let _ = unsafe { result::$destroy(self.0) };
            }
        }
    };
}
owned!(Description, cublasLtMatmulDesc_t, Attribute, set_matmul_desc_attribute, destroy_matmul_desc);
owned!(Layout, cublasLtMatrixLayout_t, LayoutAttribute, set_matrix_layout_attribute, destroy_matrix_layout);
owned!(Limits, cublasLtMatmulPreference_t, Limit, set_matmul_pref_attribute, destroy_matmul_pref);
