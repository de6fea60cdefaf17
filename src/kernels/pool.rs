//! Pooling over windows of 3×3 that leave out what lies beyond the image (torch's `max_pool2d` and `avg_pool2d` with
//! `count_include_pad=False`), forward only.
use crate::kernels::memory::Values;
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

const SIDE: usize = 3;

/// What is taken of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The largest value.
    Max,
    /// The mean.
    Mean,
}

/// Pools `[batch, channels, height, width]`; `padding` (0 or 1) is how far windows may reach beyond each border.
///
/// # Errors
/// When the image is smaller than a window.
pub fn pool(x: &Tensor, kind: Pool, stride: usize, padding: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if stride == 0 || padding > 1 || height + 2 * padding < SIDE || width + 2 * padding < SIDE {
        bail!("pool: input {:?}, stride {stride}, padding {padding}", x.shape())
    }
    if !x.device().is_cpu() || x.dtype() != DType::F32 {
        return reference(x, kind, stride, padding);
    }
    let (rows, columns) = (Axis::new(height, stride, padding), Axis::new(width, stride, padding));
    let mut y = vec![0f32; batch * channels * rows.windows * columns.windows];
    let x = x.contiguous()?;
    y.par_chunks_exact_mut(rows.windows * columns.windows)
        .zip(Values::of(&x)?.par_chunks_exact(height * width))
        .for_each_init(|| vec![0f32; width], |between, (y, x)| pool_plane(x, y, kind, &rows, &columns, between));
    Tensor::from_vec(y, (batch, channels, rows.windows, columns.windows), x.device())
}

/// Windows along one side of the image.
struct Axis {
    windows: usize,
    size: usize,
    stride: usize,
    padding: usize,
}

impl Axis {
    fn new(size: usize, stride: usize, padding: usize) -> Self {
        Self { windows: (size + 2 * padding - SIDE) / stride + 1, size, stride, padding }
    }

    /// The places within the image that a window takes in: one at least.
    fn window(&self, index: usize) -> std::ops::Range<usize> {
        let first = index * self.stride;
        first.saturating_sub(self.padding)..(first + SIDE - self.padding).min(self.size)
    }
}

/// One plane: first down the columns into `between`, then along the row.
fn pool_plane(x: &[f32], y: &mut [f32], kind: Pool, rows: &Axis, columns: &Axis, between: &mut [f32]) {
    let join = |a: f32, b: f32| match kind {
        // NaN stays, as in torch.
        Pool::Max if b > a || b.is_nan() => b,
        Pool::Max => a,
        Pool::Mean => a + b,
    };
    for (row, out) in y.chunks_exact_mut(columns.windows).enumerate() {
        let taken = rows.window(row);
        let mut lines = x[taken.start * columns.size..taken.end * columns.size].chunks_exact(columns.size);
        if let Some(first) = lines.next() {
            between.copy_from_slice(first);
        }
        for line in lines {
            between.iter_mut().zip(line).for_each(|(a, b)| *a = join(*a, *b));
        }
        for (column, out) in out.iter_mut().enumerate() {
            let across = columns.window(column);
            let all = between[across.start + 1..across.end].iter().fold(between[across.start], |a, b| join(a, *b));
            *out = match kind {
                Pool::Max => all,
                Pool::Mean => all / (taken.len() * across.len()) as f32,
            };
        }
    }
}

/// The reference implementation, by candle's operations.
fn reference(x: &Tensor, kind: Pool, stride: usize, padding: usize) -> Result<Tensor> {
    match kind {
        Pool::Max => {
            // A border repeated changes no maximum.
            let x = x.pad_with_same(2, padding, padding)?.pad_with_same(3, padding, padding)?;
            x.max_pool2d_with_stride(SIDE, stride)
        }
        Pool::Mean => {
            let mean = |x: &Tensor| {
                let x = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
                x.avg_pool2d_with_stride(SIDE, stride)
            };
            let (_, _, height, width) = x.dims4()?;
            let share = mean(&Tensor::ones((1, 1, height, width), x.dtype(), x.device())?)?;
            mean(x)?.broadcast_div(&share)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_direct_form_is_the_reference() {
        for (height, width) in [(3, 3), (1, 4), (8, 5), (9, 12)] {
            let x = Tensor::randn(0f32, 1., (2, 3, height, width), &Device::Cpu).unwrap();
            for (kind, stride, padding) in
                [(Pool::Max, 2, 0), (Pool::Max, 1, 1), (Pool::Mean, 1, 1), (Pool::Mean, 2, 0), (Pool::Mean, 2, 1)]
            {
                let Ok(found) = pool(&x, kind, stride, padding) else {
                    assert!(height < SIDE && padding == 0);
                    continue;
                };
                let expected = reference(&x, kind, stride, padding).unwrap();
                assert_eq!(found.shape(), expected.shape());
                let off = (found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(off < 1e-6, "{kind:?} {height}×{width}: {off}");
            }
        }
    }
}
