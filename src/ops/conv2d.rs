//! Convolution 1×1 and 3×3 of the frozen autoencoder, forward only.
//!
//! On the CPU each tile of output rows is unfolded and multiplied on one thread, tiles running in parallel: memory
//! stays bounded, and the result is the same for any number of threads.
use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// Bytes of an unfolded tile. Each tile reads all weights, so tiles must be large; 4 MiB was as fast as 8 and up to 1.5
/// times as fast as 1 (SD3's autoencoder on two cores), and 3 to 7 times as fast as candle's convolution.
const TILE_BYTES: usize = 1 << 22;

/// How output positions follow input positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// Same height and width: zeros all around.
    One,
    /// Half the height and width: zeros at the right and the bottom only, as diffusers' `Downsample2D`.
    Two,
}

impl Stride {
    fn step(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// A convolution with bias.
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    weight: Tensor,
    /// `[out]`.
    bias: Tensor,
    stride: Stride,
}

impl Conv2d {
    /// `weight` `[out, in, kernel, kernel]` with kernel 1 or 3, `bias` `[out]`; stride 2 with kernel 3 alone.
    pub fn new(weight: Tensor, bias: Tensor, stride: Stride) -> Result<Self> {
        let (output, _, height, width) = weight.dims4()?;
        if height != width || !matches!((height, stride), (3, _) | (1, Stride::One)) || bias.dims() != [output] {
            bail!("conv2d: weight {:?} with bias {:?}, stride {stride:?}", weight.shape(), bias.shape())
        }
        Ok(Self { weight: weight.contiguous()?, bias: bias.contiguous()?, stride })
    }

    /// `[batch, in, height, width]` to `[batch, out, height/stride, width/stride]`, rounded down for a stride of 2.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = x.dims4()?;
        let (_, input, kernel, _) = self.weight.dims4()?;
        if channels != input || height < self.stride.step() || width < self.stride.step() {
            bail!("conv2d: input {:?} for weight {:?}", x.shape(), self.weight.shape())
        }
        if x.device().is_cpu() && x.dtype() == DType::F32 && self.weight.dtype() == DType::F32 {
            return self.forward_cpu(&x.contiguous()?);
        }
        let (x, padding) = match self.stride {
            Stride::One => (x.clone(), kernel / 2),
            Stride::Two => (x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?, 0),
        };
        let y = x.conv2d(&self.weight, padding, self.stride.step(), 1, 1)?;
        y.broadcast_add(&self.bias.reshape((1, (), 1, 1))?)
    }

    fn forward_cpu(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, input, height, width) = x.dims4()?;
        let (output, _, kernel, _) = self.weight.dims4()?;
        let step = self.stride.step();
        let padding = if step == 1 { kernel / 2 } else { 0 };
        let window = Window { input, height, width, kernel, step, padding, out_width: width / step };
        let out_height = height / step;
        let plane = out_height * window.out_width;
        let depth = input * kernel * kernel;
        // At least four tiles an image, so that a small one still runs on some threads.
        let tile_rows = (TILE_BYTES / (4 * depth * window.out_width)).clamp(1, out_height.div_ceil(4));
        let tiles_per_image = out_height.div_ceil(tile_rows);
        let mut y = vec![0f32; batch * output * plane];
        with_slices(&[x, &self.weight, &self.bias], |slices| {
            let [x, weight, bias] = slices else { unreachable!("as many slices as tensors") };
            let destination = Destination(y.as_mut_ptr());
            (0..batch * tiles_per_image).into_par_iter().for_each_init(Vec::new, |unfolded, tile| {
                let (image, tile) = (tile / tiles_per_image, tile % tiles_per_image);
                let rows = tile * tile_rows..((tile + 1) * tile_rows).min(out_height);
                let pixels = rows.len() * window.out_width;
                window.unfold(&x[image * input * height * width..][..input * height * width], rows.clone(), unfolded);
                let first = image * output * plane + rows.start * window.out_width;
                // SAFETY: a tile's task alone writes its rows of its image: for each output channel `pixels` elements
                // from `first + channel * plane`, which lie within `y` as `rows` lie within the output. `weight` is
                // `[output, depth]` and `unfolded` `[depth, pixels]`, both in rows.
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
                        unfolded.as_ptr(),
                        1,
                        pixels as isize,
                        1.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
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
    kernel: usize,
    step: usize,
    padding: usize,
    out_width: usize,
}

impl Window {
    /// Unfolds output rows `rows` of one image `[input, height, width]` to `[input · kernel², rows · out_width]`.
    fn unfold(&self, image: &[f32], rows: std::ops::Range<usize>, unfolded: &mut Vec<f32>) {
        unfolded.resize(self.input * self.kernel * self.kernel * rows.len() * self.out_width, 0.0);
        let mut lines = unfolded.chunks_exact_mut(self.out_width);
        for plane in image.chunks_exact(self.height * self.width) {
            for ky in 0..self.kernel {
                for kx in 0..self.kernel {
                    for (row, line) in rows.clone().zip(&mut lines) {
                        let y = (row * self.step + ky).wrapping_sub(self.padding);
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
        if self.step == 1 {
            let left = self.padding.saturating_sub(kx);
            let skip = kx.saturating_sub(self.padding);
            let count = (self.width - skip.min(self.width)).min(self.out_width - left);
            line[..left].fill(0.0);
            line[left..left + count].copy_from_slice(&source[skip..skip + count]);
            line[left + count..].fill(0.0);
        } else {
            // The last window may reach one column beyond the input.
            for (column, value) in line.iter_mut().enumerate() {
                *value = source.get(column * self.step + kx).copied().unwrap_or(0.0);
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
