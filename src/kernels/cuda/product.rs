//! Matrix products by cuBLAS, of rows where they lie and into where they belong.
use super::{device_of, start};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result::gemm_strided_batched_ex, sys};
use candle_core::{D, DType, Result, Tensor, bail};

/// A matrix by rows for each batch entry, in a contiguous tensor in f32 or bf16.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub(super) tensor: &'a Tensor,
    /// The first value of the first entry.
    first: usize,
    /// Values from a row to the next: its width, in memory.
    pub(super) width: usize,
    /// Values from an entry to the next.
    pub(super) entry: usize,
    pub(super) is_transposed: bool,
}

impl<'a> Matrix<'a> {
    /// All rows of the last dimension, as one entry.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        Self::rows(tensor, 0, 0)
    }

    /// Rows of the last dimension from `row` on; the next entry's begin `rows` later.
    pub fn rows(tensor: &'a Tensor, row: usize, rows: usize) -> Result<Self> {
        let width = tensor.dim(D::Minus1)?;
        Ok(Self { tensor, first: row * width, width, entry: rows * width, is_transposed: false })
    }

    /// The matrix with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { is_transposed: !self.is_transposed, ..self }
    }

    /// Where it begins.
    pub(super) fn start(&self) -> Result<u64> {
        Ok(start(self.tensor)? + (self.first * self.tensor.dtype().size_in_bytes()) as u64)
    }

    fn dtype(&self) -> Result<sys::cudaDataType> {
        match self.tensor.dtype() {
            DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
            DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
            other => bail!("a product of {other:?} on a GPU"),
        }
    }

    fn operation(&self) -> sys::cublasOperation_t {
        if self.is_transposed { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N }
    }

    /// Whether so many entries of this size lie within the tensor.
    fn has(&self, entries: usize, (rows, columns): (usize, usize)) -> bool {
        let (rows, columns) = if self.is_transposed { (columns, rows) } else { (rows, columns) };
        let [before, above] = [entries, rows].map(|count| count.saturating_sub(1));
        let last = self.first + before * self.entry + above * self.width + columns;
        columns <= self.width && last <= self.tensor.elem_count()
    }
}

/// `scale·a·b` of every batch entry, both of one type: a `[rows, inner]`, b `[inner, columns]`.
pub struct Product<'a> {
    /// Rows, inner and columns.
    pub shape: (usize, usize, usize),
    /// Batch entries.
    pub entries: usize,
    pub a: Matrix<'a>,
    pub b: Matrix<'a>,
    pub scale: f64,
}

impl Product<'_> {
    /// Writes the product over `out` `[rows, columns]`, or adds it to what is there: rounded once, to out's type. Entries of
    /// `out` do not overlap, and nobody else may hold it.
    pub fn write(&self, out: Matrix, adds: bool) -> Result<()> {
        let Self { shape: (rows, inner, columns), entries, a, b, scale } = *self;
        if !self.writes_to(out)? {
            return Ok(());
        }
        let device = device_of(out.tensor)?;
        device.cuda_stream().context().bind_to_thread().w()?;
        let blas = device.cublas_handle();
        let (scale, keep) = (scale as f32, f32::from(u8::from(adds)));
        let [m, k, n] = [rows, inner, columns].map(size);
        let [lda, ldb, ldc] = [a, b, out].map(|matrix| size(matrix.width));
        let [a_entry, b_entry, c_entry] = [a, b, out].map(|matrix| matrix.entry as i64);
        // A matrix by rows is its transpose by columns, which cuBLAS's are: outᵀ = bᵀ·aᵀ.
        // SAFETY: matrices of these sizes within their tensors, on the GPU whose stream the handle has; memory is freed in
        // its order.
        unsafe {
            gemm_strided_batched_ex(
                *blas.handle(),
                b.operation(),
                a.operation(),
                n?,
                m?,
                k?,
                (&raw const scale).cast(),
                b.start()? as *const _,
                b.dtype()?,
                ldb?,
                b_entry,
                a.start()? as *const _,
                a.dtype()?,
                lda?,
                a_entry,
                (&raw const keep).cast(),
                out.start()? as *mut _,
                out.dtype()?,
                ldc?,
                c_entry,
                size(entries)?,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .w()
    }

    /// Whether there is anything to be written to `out`, into which it must fit.
    pub(super) fn writes_to(&self, out: Matrix) -> Result<bool> {
        let Self { shape: (rows, inner, columns), entries, a, b, .. } = *self;
        if [entries, rows, columns].contains(&0) {
            return Ok(false);
        }
        let fits =
            a.has(entries, (rows, inner)) && b.has(entries, (inner, columns)) && out.has(entries, (rows, columns));
        if !fits || out.is_transposed || a.tensor.dtype() != b.tensor.dtype() {
            bail!("{entries} products {:?}: {:?} · {:?} into {:?}", self.shape, a.tensor, b.tensor, out.tensor);
        }
        Ok(true)
    }
}

/// A size as cuBLAS takes it.
pub(super) fn size(value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| candle_core::Error::msg(format!("{value} is too large for cuBLAS")))
}
