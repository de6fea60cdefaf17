//! The values of tensors in the host's memory: read, and written in place.
use super::cpu::for_each_row;
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail};
use std::cell::Cell;
use std::ops::Deref;

/// Values that are handed to a thread as one row.
const ROW: usize = 4096;

/// The f32 values of a contiguous CPU tensor, borrowed.
pub struct Values<'a> {
    storage: StorageRef<'a>,
    start: usize,
    end: usize,
}

impl<'a> Values<'a> {
    /// # Errors
    /// The tensor is not contiguous, or not f32 on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("tensor is not contiguous") };
        if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
            bail!("tensor is not f32 on the CPU")
        }
        Ok(Self { storage, start, end })
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            _ => &[],
        }
    }
}

/// Whether a tensor is one that [`Values`] and [`with_values_mut`] take, once it is contiguous.
pub fn is_on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// Calls `work` with the f32 values of a contiguous CPU tensor, to be changed. Nobody else may read or write them meanwhile.
pub fn with_values_mut<R>(tensor: &Tensor, work: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    struct Call<F, R>(Cell<Option<F>>, Cell<Option<R>>);
    impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Call<F, R> {
        fn name(&self) -> &'static str {
            "with-values-mut"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
                bail!("a tensor to be changed is not contiguous f32")
            };
            self.1.set(self.0.take().map(|work| work(&mut values[start..end])));
            Ok(())
        }
    }
    let call = Call(Cell::new(Some(work)), Cell::new(None));
    tensor.inplace_op1(&call)?;
    match call.1.take() {
        Some(result) => Ok(result),
        None => bail!("a tensor to be changed is not on the CPU"),
    }
}

/// Adds `part` to `memory`; where that cannot be done in place, returns the sum.
pub fn add_in_place(memory: &Tensor, part: Tensor) -> Result<Option<Tensor>> {
    if !is_on_cpu(memory) || !is_on_cpu(&part) {
        #[cfg(feature = "cuda")]
        if super::cuda::add::add_in_place(memory, &part)? {
            return Ok(None);
        }
        return (memory + part.to_dtype(memory.dtype())?).map(Some);
    }
    let part = part.contiguous()?;
    let part = Values::of(&part)?;
    with_values_mut(memory, |sum| {
        for_each_row!(sum, ROW, |r, sum| {
            sum.iter_mut().zip(&part[r * ROW..]).for_each(|(sum, part)| *sum += part);
        });
    })?;
    Ok(None)
}
