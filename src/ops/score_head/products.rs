//! The score head's backward pass as matrix products of tensors, for devices that have no loops of their own.
//!
//! As on the CPU: maps lie channel-last in one long row of pixels, each with a border of zeros around it, so that a 3×3
//! convolution is three products, one a kernel row, of three neighbouring pixels' channels.
use super::{CHANNELS, tensors};
use candle_core::{Result, Tensor};

/// Values of unfolded pixels that are held at a time.
const HELD: usize = 1 << 26;

/// Values that the backward pass has at a time for each pixel, borders included, when it goes through the middle layer: the
/// maps' rows of three, both hidden layers, the first one's rows of three, the gradients of the last two; and of the
/// gradient on its way the rows, what the product gives, where it passes as bytes and as numbers, and the result.
const VALUES_A_PIXEL: usize = (5 + 6 * CHANNELS) + (6 * CHANNELS + CHANNELS / 4);

fn maps_a_chunk(h: usize, w: usize) -> usize {
    (HELD / (3 * CHANNELS * (h + 2) * (w + 2))).max(1)
}

/// Bytes that `backward` takes at most for so many maps of `h` rows and `w` columns, by count.
pub fn backward_bytes(maps: usize, h: usize, w: usize) -> u64 {
    (maps.min(maps_a_chunk(h, w)) * (h + 2) * (w + 2) * VALUES_A_PIXEL * size_of::<f32>()) as u64
}

/// Gradients of the maps `[maps, h, w]` and of the flat parameters.
pub fn backward(maps: &Tensor, parameters: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    let (count, h, w) = maps.dims3()?;
    let chunk = maps_a_chunk(h, w);
    let (mut d_maps, mut d_parameters) = (vec![], parameters.zeros_like()?);
    for first in (0..count).step_by(chunk) {
        let held = chunk.min(count - first);
        let (d_chunk, d_chunk_parameters) =
            of_chunk(&maps.narrow(0, first, held)?, parameters, &grad.narrow(0, first, held)?)?;
        d_maps.push(d_chunk);
        d_parameters = (d_parameters + d_chunk_parameters)?;
    }
    Ok((Tensor::cat(&d_maps, 0)?, d_parameters))
}

fn of_chunk(maps: &Tensor, parameters: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    let (count, h, w) = maps.dims3()?;
    let pixels = Pixels { count, height: h + 2, width: w + 2 };
    let [w1, b1, w2, b2, w3, _] = &tensors(parameters)?;
    let inside = pixels.bordered(&maps.ones_like()?)?;
    let hidden = |seen: &Tensor, weight: &Tensor, bias: &Tensor| {
        pixels.convolve(seen, weight)?.broadcast_add(bias)?.relu()?.broadcast_mul(&inside)
    };
    let seen_maps = pixels.unfold(&pixels.bordered(maps)?)?;
    let first = hidden(&seen_maps, w1, b1)?;
    let seen_first = pixels.unfold(&first)?;
    let second = hidden(&seen_first, w2, b2)?;

    // Where a hidden value is 0, as it is on every border, no gradient passes.
    let through = |d_out: &Tensor, weight: &Tensor, hidden: &Tensor| {
        pixels.convolve(&pixels.unfold(d_out)?, &flipped(weight)?)? * hidden.gt(0.0)?.to_dtype(hidden.dtype())?
    };
    let d_last = pixels.bordered(grad)?;
    let d_second = through(&d_last, w3, &second)?;
    let d_first = through(&d_second, w2, &first)?;
    let d_maps = pixels.convolve(&pixels.unfold(&d_first)?, &flipped(w1)?)?;
    let d_maps = (pixels.within(&d_maps)? + grad)?;
    let ones = Tensor::ones((1, pixels.number()), grad.dtype(), grad.device())?;
    let bias = |d_out: &Tensor| ones.matmul(d_out)?.flatten_all();
    let d_parameters = [
        pixels.weight_gradient(&seen_maps, &d_first)?,
        bias(&d_first)?,
        pixels.weight_gradient(&seen_first, &d_second)?,
        bias(&d_second)?,
        pixels.weight_gradient(&pixels.unfold(&second)?, &d_last)?,
        bias(&d_last)?,
    ];
    Ok((d_maps, Tensor::cat(&d_parameters, 0)?))
}

/// The kernel `[in, out, 3, 3]` of the convolution that carries a gradient back through `weight` `[out, in, 3, 3]`.
fn flipped(weight: &Tensor) -> Result<Tensor> {
    weight.transpose(0, 1)?.contiguous()?.flip(&[2, 3])
}

/// Maps with a border around each, pixel by pixel.
struct Pixels {
    count: usize,
    height: usize,
    width: usize,
}

impl Pixels {
    fn number(&self) -> usize {
        self.count * self.height * self.width
    }

    /// `[maps, h, w]` with a border of zeros, as `[pixels, 1]`.
    fn bordered(&self, maps: &Tensor) -> Result<Tensor> {
        maps.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?.reshape((self.number(), 1))
    }

    /// `[pixels, 1]` without the borders, `[maps, h, w]`.
    fn within(&self, pixels: &Tensor) -> Result<Tensor> {
        let maps = pixels.reshape((self.count, self.height, self.width))?;
        maps.narrow(1, 1, self.height - 2)?.narrow(2, 1, self.width - 2)
    }

    /// `[pixels, channels]` to rows `[pixels + 2·width, 3·channels]` of a pixel with its neighbours to the left and
    /// right: what kernel row `ky` sees at pixel `p` is row `p + ky·width`.
    fn unfold(&self, pixels: &Tensor) -> Result<Tensor> {
        let rows = self.number() + 2 * self.width;
        let padded = pixels.pad_with_zeros(0, self.width + 1, self.width + 1)?;
        let shifted = |kx| padded.narrow(0, kx, rows);
        Tensor::cat(&[shifted(0)?, shifted(1)?, shifted(2)?], 1)
    }

    /// The convolution of unfolded pixels with `weight` `[out, in, 3, 3]`: `[pixels, out]`, borders included.
    fn convolve(&self, unfolded: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (outer, inner, _, _) = weight.dims4()?;
        let kernel = weight.permute((2, 3, 1, 0))?.contiguous()?.reshape((3, 3 * inner, outer))?;
        let row = |ky: usize| unfolded.narrow(0, ky * self.width, self.number())?.matmul(&kernel.get(ky)?);
        (row(0)? + row(1)?)? + row(2)?
    }

    /// The gradient of the weight `[out, in, 3, 3]` of [`Self::convolve`], flat.
    fn weight_gradient(&self, unfolded: &Tensor, d_out: &Tensor) -> Result<Tensor> {
        let (inner, outer) = (unfolded.dim(1)? / 3, d_out.dim(1)?);
        let row = |ky: usize| unfolded.narrow(0, ky * self.width, self.number())?.t()?.matmul(d_out);
        let kernel = Tensor::stack(&[row(0)?, row(1)?, row(2)?], 0)?.reshape((3, 3, inner, outer))?;
        kernel.permute((3, 2, 0, 1))?.contiguous()?.flatten_all()
    }
}
