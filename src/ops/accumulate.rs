//! Parts of a gradient, written where the gradient belongs or added to what is there.
#[cfg(feature = "cuda")]
use crate::autograd::{Destination, Gradients};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::output;
#[cfg(feature = "cuda")]
use candle_core::{DType, Result, Shape, Tensor};

/// `add_rows!(gradients, input, shape, width, |r, row| work)`: adds a part of the gradient of an input of this shape, in f32 in
/// the host's memory. `work` adds to row `r` of `width` values.
macro_rules! add_rows {
    ($gradients:expr, $input:expr, $shape:expr, $width:expr, |$r:pat_param, $row:pat_param| $work:expr) => {{
        use $crate::autograd::Destination;
        let (shape, width): (&candle_core::Shape, usize) = ($shape, $width);
        $gradients.accumulate($input, |destination| match destination {
            Destination::AddTo(memory) => {
                $crate::kernels::memory::with_values_mut(memory, |sum| {
                    $crate::kernels::cpu::for_each_row!(sum, width, |$r, $row| $work)
                })?;
                Ok(None)
            }
            Destination::New | Destination::Overwrite(_) => {
                let part = $crate::kernels::cpu::new_rows!(shape.elem_count(), width, |$r, $row| $work);
                Tensor::from_vec(part, shape, &Device::Cpu).map(Some)
            }
        })
    }};
}
pub(crate) use add_rows;

/// Adds a part of the gradient of an input of this shape and type. `write` gets memory on the GPU of `like` and whether its
/// part is to be added to what is there; else it writes every value.
#[cfg(feature = "cuda")]
pub fn accumulate(
    gradients: &mut Gradients,
    input: usize,
    (shape, dtype, like): (impl Into<Shape>, DType, &Tensor),
    write: impl FnOnce(&Tensor, bool) -> Result<()>,
) -> Result<()> {
    let can_be_written = |memory: &Tensor| memory.dtype() == dtype && memory.is_contiguous();
    gradients.accumulate(input, |destination| match destination {
        Destination::AddTo(memory) if can_be_written(memory) => write(memory, true).map(|()| None),
        Destination::Overwrite(memory) if can_be_written(memory) => write(memory, false).map(|()| None),
        _ => {
            let part = output(shape, dtype, like)?;
            write(&part, false)?;
            destination.take(part)
        }
    })
}
