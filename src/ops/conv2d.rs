//! Two-dimensional convolution of frozen networks (autoencoder, feature networks), forward only.
//!
//! On the CPU each tile of output rows is unfolded and multiplied on one thread, tiles running in parallel: memory
//! stays bounded, and the result is the same for any number of threads.
use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// Bytes of an unfolded tile. Each tile reads all weights, so tiles must be large; 4 MiB was as fast as 8 and up to 1.5
/// times as fast as 1 (SD3's autoencoder on two cores), and 3 to 7 times as fast as candle's convolution.
const TILE_BYTES: usize = 1 << 22;

/// Values that candle's convolution unfolds at a time: 256 MiB in f32.
const UNFOLDED_VALUES: usize = 1 << 26;

/// Batches of so many images are one task an image.
const MANY: usize = 8;

/// The autoencoder's two ways in which output positions follow input positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// Same height and width: zeros all around.
    One,
    /// Half the height and width: zeros at the right and the bottom only, as diffusers' `Downsample2D`.
    Two,
}

/// A convolution with bias, and a ReLU after it where wanted.
pub struct Conv2d {
    /// `[out, in, kernel height, kernel width]`.
    weight: Tensor,
    /// `[out]`.
    bias: Tensor,
    stride: usize,
    /// Zeros before the first and after the last row.
    rows: (usize, usize),
    /// Zeros before the first and after the last column.
    columns: (usize, usize),
    relu: bool,
}

impl Conv2d {
    /// `weight` `[out, in, kernel, kernel]` with kernel 1 or 3, `bias` `[out]`; stride 2 with kernel 3 alone.
    pub fn new(weight: Tensor, bias: Tensor, stride: Stride) -> Result<Self> {
        let (_, _, height, width) = weight.dims4()?;
        match (height, width, stride) {
            (1, 1, Stride::One) => Self::padded(weight, bias, 1, (0, 0)),
            (3, 3, Stride::One) => Self::padded(weight, bias, 1, (1, 1)),
            (3, 3, Stride::Two) => Ok(Self { rows: (0, 1), columns: (0, 1), ..Self::padded(weight, bias, 2, (0, 0))? }),
            _ => bail!("conv2d: weight {:?}, stride {stride:?}", weight.shape()),
        }
    }

    /// Any kernel, with `padding` (rows, columns) of zeros on both sides, as torch's `Conv2d`.
    pub fn padded(weight: Tensor, bias: Tensor, stride: usize, padding: (usize, usize)) -> Result<Self> {
        let (output, _, height, width) = weight.dims4()?;
        if stride == 0 || padding.0 >= height || padding.1 >= width || bias.dims() != [output] {
            bail!("conv2d: weight {:?} with bias {:?}, stride {stride}, {padding:?}", weight.shape(), bias.shape())
        }
        Ok(Self {
            weight: weight.contiguous()?,
            bias: bias.contiguous()?,
            stride,
            rows: (padding.0, padding.0),
            columns: (padding.1, padding.1),
            relu: false,
        })
    }

    /// The same with negative outputs set to 0.
    pub fn with_relu(self) -> Self {
        Self { relu: true, ..self }
    }

    /// `[batch, in, height, width]` to `[batch, out, out height, out width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = x.dims4()?;
        let (_, input, kernel_height, kernel_width) = self.weight.dims4()?;
        let (rows, columns) = (height + self.rows.0 + self.rows.1, width + self.columns.0 + self.columns.1);
        if channels != input || rows < kernel_height || columns < kernel_width {
            bail!("conv2d: input {:?} for weight {:?}", x.shape(), self.weight.shape())
        }
        if x.device().is_cpu() && x.dtype() == DType::F32 && self.weight.dtype() == DType::F32 {
            return self.forward_cpu(&x.contiguous()?);
        }
        self.forward_composed(x, UNFOLDED_VALUES)
    }

    /// By candle's convolution, which on a GPU unfolds its input: some rows at a time, so that this takes no more than
    /// `most` values, or one row's. All of a large picture would take gigabytes.
    fn forward_composed(&self, x: &Tensor, most: usize) -> Result<Tensor> {
        let x = x.pad_with_zeros(2, self.rows.0, self.rows.1)?.pad_with_zeros(3, self.columns.0, self.columns.1)?;
        let (batch, input, height, width) = x.dims4()?;
        let (_, _, kernel_height, kernel_width) = self.weight.dims4()?;
        let out_height = (height - kernel_height) / self.stride + 1;
        let out_width = (width - kernel_width) / self.stride + 1;
        let of_row = batch * input * kernel_height * kernel_width * out_width;
        let rows = (most / of_row.max(1)).clamp(1, out_height);
        let parts = (0..out_height).step_by(rows).map(|first| {
            let rows = rows.min(out_height - first);
            let x = x.narrow(2, first * self.stride, (rows - 1) * self.stride + kernel_height)?;
            x.conv2d(&self.weight, 0, self.stride, 1, 1)
        });
        let y = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 2)?;
        let y = y.broadcast_add(&self.bias.reshape((1, (), 1, 1))?)?;
        if self.relu { y.relu() } else { Ok(y) }
    }

    fn forward_cpu(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, input, height, width) = x.dims4()?;
        let (output, _, kernel_height, kernel_width) = self.weight.dims4()?;
        let window = Window {
            input,
            height,
            width,
            kernel: (kernel_height, kernel_width),
            stride: self.stride,
            top: self.rows.0,
            left: self.columns.0,
            out_width: (width + self.columns.0 + self.columns.1 - kernel_width) / self.stride + 1,
        };
        let out_height = (height + self.rows.0 + self.rows.1 - kernel_height) / self.stride + 1;
        let plane = out_height * window.out_width;
        let depth = input * kernel_height * kernel_width;
        // Whatever the machine at least four tiles an image, so that a small one still runs on some threads; of many
        // images each is one task already.
        let tiles = if batch < MANY { 4 } else { 1 };
        let tile_rows = (TILE_BYTES / (4 * depth * window.out_width)).clamp(1, out_height.div_ceil(tiles));
        let tiles_per_image = out_height.div_ceil(tile_rows);
        let mut y = vec![0f32; batch * output * plane];
        with_slices(&[x, &self.weight, &self.bias], |slices| {
            let [x, weight, bias] = slices else { unreachable!("as many slices as tensors") };
            let destination = Destination(y.as_mut_ptr());
            (0..batch * tiles_per_image).into_par_iter().for_each_init(Vec::new, |unfolded, tile| {
                let (image, tile) = (tile / tiles_per_image, tile % tiles_per_image);
                let rows = tile * tile_rows..((tile + 1) * tile_rows).min(out_height);
                let pixels = rows.len() * window.out_width;
                let source = &x[image * input * height * width..][..input * height * width];
                // A kernel of one sees the input as it is.
                let (matrix, line) = if window.is_identity() {
                    (&source[rows.start * width..], height * width)
                } else {
                    window.unfold(source, rows.clone(), unfolded);
                    (&unfolded[..], pixels)
                };
                let first = image * output * plane + rows.start * window.out_width;
                // SAFETY: a tile's task alone writes its rows of its image: for each output channel `pixels` elements
                // from `first + channel * plane`, which lie within `y` as `rows` lie within the output. `weight` is
                // `[output, depth]` in rows; `matrix` has `depth` lines of `pixels`, `line` apart, the last of which
                // ends within the image's `source` or is the last of `unfolded`.
                unsafe {
                    let destination = destination.get().add(first);
                    for (channel, &bias) in bias.iter().enumerate() {
                        std::slice::from_raw_parts_mut(destination.add(channel * plane), pixels).fill(bias);
                    }
                    gemm::gemm(
                        output,
                        pixels,
                        depth,
                        destination,
                        1,
                        plane as isize,
                        true,
                        weight.as_ptr(),
                        1,
                        depth as isize,
                        matrix.as_ptr(),
                        1,
                        line as isize,
                        1.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                    if self.relu {
                        for channel in 0..output {
                            let line = std::slice::from_raw_parts_mut(destination.add(channel * plane), pixels);
                            // Not `max`, which would turn NaN into 0.
                            line.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
                        }
                    }
                }
            });
        })?;
        Tensor::from_vec(y, (batch, output, out_height, window.out_width), x.device())
    }
}

/// Output memory that tasks write disjoint parts of.
struct Destination(*mut f32);

// SAFETY: the pointer is only used to write parts that no other task touches, while the vector it is from lives.
unsafe impl Sync for Destination {}

impl Destination {
    /// A method, so that closures capture the whole and not the bare pointer.
    fn get(&self) -> *mut f32 {
        self.0
    }
}

/// Which input elements an output element sees.
struct Window {
    input: usize,
    height: usize,
    width: usize,
    kernel: (usize, usize),
    stride: usize,
    /// Zeros above and to the left of the input.
    top: usize,
    left: usize,
    out_width: usize,
}

impl Window {
    /// Whether output positions see just the input at their own place.
    fn is_identity(&self) -> bool {
        self.kernel == (1, 1) && self.stride == 1
    }

    /// Unfolds output rows `rows` of one image `[input, height, width]` to `[input · kernel, rows · out_width]`.
    fn unfold(&self, image: &[f32], rows: std::ops::Range<usize>, unfolded: &mut Vec<f32>) {
        let (kernel_height, kernel_width) = self.kernel;
        unfolded.resize(self.input * kernel_height * kernel_width * rows.len() * self.out_width, 0.0);
        let mut lines = unfolded.chunks_exact_mut(self.out_width);
        for plane in image.chunks_exact(self.height * self.width) {
            for ky in 0..kernel_height {
                for kx in 0..kernel_width {
                    for (row, line) in rows.clone().zip(&mut lines) {
                        let y = (row * self.stride + ky).wrapping_sub(self.top);
                        match plane.get(y.saturating_mul(self.width)..).and_then(|rest| rest.get(..self.width)) {
                            Some(source) => self.unfold_line(source, kx, line),
                            None => line.fill(0.0),
                        }
                    }
                }
            }
        }
    }

    /// One row of the input, as kernel column `kx` sees it.
    fn unfold_line(&self, source: &[f32], kx: usize, line: &mut [f32]) {
        if self.stride == 1 {
            let before = self.left.saturating_sub(kx).min(self.out_width);
            let skip = kx.saturating_sub(self.left).min(self.width);
            let count = (self.width - skip).min(self.out_width - before);
            line[..before].fill(0.0);
            line[before..before + count].copy_from_slice(&source[skip..skip + count]);
            line[before + count..].fill(0.0);
        } else {
            // Windows may begin before the input and end beyond it.
            for (column, value) in line.iter_mut().enumerate() {
                let x = (column * self.stride + kx).wrapping_sub(self.left);
                *value = source.get(x).copied().unwrap_or(0.0);
            }
        }
    }
}

/// Runs `work` on the data of contiguous f32 tensors on the CPU.
pub(super) fn with_slices<R>(tensors: &[&Tensor], work: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        match (&**storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) => slices.push(&data[start..end]),
            _ => bail!("expected contiguous f32 on the CPU"),
        }
    }
    Ok(work(&slices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// f64 takes candle's own convolution, as a GPU does.
    #[test]
    fn the_direct_form_is_the_composed_one() {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
        for (batch, height, width) in [(1, 9, 12), (2, 1, 1), (9, 17, 5)] {
            let x = random(&[batch, 3, height, width]);
            for (kernel, stride, padding) in [
                ((1, 1), 1, (0, 0)),
                ((1, 1), 2, (0, 0)),
                ((3, 3), 2, (1, 1)),
                ((3, 3), 3, (0, 2)),
                ((5, 5), 1, (2, 2)),
                ((1, 7), 1, (0, 3)),
                ((7, 1), 1, (3, 0)),
                ((4, 2), 2, (3, 1)),
            ] {
                let (weight, bias) = (random(&[4, 3, kernel.0, kernel.1]), random(&[4]));
                let exact = Conv2d::padded(wide(&weight), wide(&bias), stride, padding).unwrap().with_relu();
                let direct = Conv2d::padded(weight, bias, stride, padding).unwrap().with_relu();
                let Ok(expected) = exact.forward(&wide(&x)) else {
                    assert!(height + 2 * padding.0 < kernel.0 || width + 2 * padding.1 < kernel.1);
                    assert!(direct.forward(&x).is_err());
                    continue;
                };
                for most in [1, 2000] {
                    let in_bands = exact.forward_composed(&wide(&x), most).unwrap();
                    let off = (in_bands - &expected).unwrap().abs().unwrap().max_all().unwrap();
                    assert!(
                        off.to_scalar::<f64>().unwrap() < 1e-12,
                        "{kernel:?} of stride {stride} in bands of {most}"
                    );
                }
                let found = direct.forward(&x).unwrap();
                assert_eq!(found.shape(), expected.shape(), "{kernel:?} of stride {stride}");
                let largest = |tensor: Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
                // Relative: sums of up to 75 products have any size.
                let off = largest((wide(&found) - &expected).unwrap()) / largest(expected).max(1.0);
                assert!(off < 1e-6, "{kernel:?} of stride {stride} on {height}×{width}: {off}");
            }
        }
    }
}
