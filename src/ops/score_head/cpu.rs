//! The score head in f32 in the host's memory: a few maps go through all three layers together, so that their activations
//! stay in cache, and nothing of them is stored: the backward pass forms them again. The middle layer is nearly all of the
//! work and runs by Winograd's filtering. Gradients, which few maps have, take a 3×3 convolution of channel-last maps with a
//! border of zeros as three matrix products, one a kernel row: three neighbouring pixels are one row of 3·channels numbers.
use super::{CHANNELS, Precision, ScoreHead, split};
use crate::kernels::cpu::{sum, vectorised};
use crate::kernels::matrix::{Product, Start, View};
use crate::kernels::memory::Values;
use crate::kernels::winograd::{self, Kernels, Outputs, Stack, TILE, TilePlace};
use crate::ops::backend::{Cpu, Forward, Gradients, Reference, Saved};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Pixels, borders included, that go through the layers together: what a core's cache has room for.
const PIXELS_A_TASK: usize = 700;
/// Pixels of a task in the backward pass, each of which adds gradients of all parameters.
const PIXELS_A_TASK_BACKWARD: usize = 2048;

type Taps = [[[f32; CHANNELS]; 3]; 3];

/// Parameters laid out for the products.
struct Layers {
    /// A vector of channels for each of the nine places, as in the last layer.
    first: Taps,
    first_bias: [f32; CHANNELS],
    second: Kernels<CHANNELS>,
    second_bias: [f32; CHANNELS],
    last: Taps,
    last_bias: f32,
    /// For the gradient.
    flipped: [[Vec<f32>; 3]; 3],
}

impl Layers {
    fn new(flat: &[f32]) -> Self {
        let mut rest = flat;
        let [w1, b1, w2, b2, w3, b3] = split(|n| rest.split_off(..n).unwrap_or_default());
        Self {
            first: taps(w1),
            first_bias: std::array::from_fn(|channel| b1[channel]),
            second: Kernels::new(w2),
            second_bias: std::array::from_fn(|channel| b2[channel]),
            last: taps(w3),
            last_bias: b3[0],
            flipped: [flipped(w1, 1, CHANNELS), flipped(w2, CHANNELS, CHANNELS), flipped(w3, CHANNELS, 1)],
        }
    }
}

/// Adds `a·b`, channel by channel.
#[inline(always)]
fn add_products(sum: &mut [f32; CHANNELS], a: &[f32; CHANNELS], b: &[f32; CHANNELS]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum += a * b;
    }
}

/// A kernel of one input or one output channel by place.
fn taps(weight: &[f32]) -> Taps {
    [0, 1, 2].map(|ky| [0, 1, 2].map(|kx| std::array::from_fn(|channel| weight[channel * 9 + ky * 3 + kx])))
}

/// The kernel of the convolution that carries a gradient back through torch's `[out, in, 3, 3]`, flipped, in and out exchanged:
/// matrix `ky` is `[3·out, in]`, row `kx·out + channel`.
fn flipped(weight: &[f32], inner: usize, outer: usize) -> [Vec<f32>; 3] {
    [0, 1, 2].map(|ky| {
        let mut rows = vec![0.0; 3 * outer * inner];
        for (o, i, kx) in indices(outer, inner) {
            rows[(kx * outer + o) * inner + i] = weight[(o * inner + i) * 9 + (2 - ky) * 3 + 2 - kx];
        }
        rows
    })
}

fn indices(outer: usize, inner: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..outer).flat_map(move |o| (0..inner).flat_map(move |i| (0..3).map(move |kx| (o, i, kx))))
}

/// Activations of as many maps as a task takes. Borders stay zero from one task to the next.
struct Hidden {
    first: Vec<f32>,
    second: Vec<f32>,
    scratch: winograd::Scratch<CHANNELS>,
}

impl Hidden {
    fn new(of: &Bordered) -> Self {
        Self { first: of.zeros(CHANNELS), second: of.zeros(CHANNELS), scratch: winograd::Scratch::default() }
    }
}

/// Some maps with a border of zeros around each: pixel (map, y, x) of channel c at `((map·H + y + 1)·W + x + 1)·C + c`,
/// behind a margin of `W + 1` pixels, so that the neighbours of every pixel exist. The border is one pixel wide, and
/// more at the bottom and the right where that makes whole tiles.
struct Bordered {
    /// Sizes with the border.
    stack: Stack,
    /// Sizes without.
    inner_height: usize,
    inner_width: usize,
}

impl Bordered {
    /// For maps `[maps, height, width]` of so many values.
    fn new(values: usize, height: usize, width: usize) -> Self {
        let bordered = |side: usize| side.next_multiple_of(TILE) + 2;
        Self {
            stack: Stack { maps: values / (height * width), height: bordered(height), width: bordered(width) },
            inner_height: height,
            inner_width: width,
        }
    }

    fn pixels(&self) -> usize {
        self.stack.maps * self.stack.height * self.stack.width
    }

    fn margin(&self) -> usize {
        self.stack.width + 1
    }

    fn zeros(&self, channels: usize) -> Vec<f32> {
        vec![0.0; (self.pixels() + 2 * self.margin()) * channels]
    }

    /// Copies maps `[maps, h, w]` of one channel in.
    fn load(&self, maps: &[f32]) -> Vec<f32> {
        let mut out = self.zeros(1);
        for (r, row) in maps.chunks_exact(self.inner_width).enumerate() {
            out[self.row(r)..][..row.len()].copy_from_slice(row);
        }
        out
    }

    /// Adds the pixels inside the borders to maps `[maps, h, w]`.
    fn add_to(&self, bordered: &[f32], maps: &mut [f32]) {
        for (r, row) in maps.chunks_exact_mut(self.inner_width).enumerate() {
            for (out, value) in row.iter_mut().zip(&bordered[self.row(r)..]) {
                *out += value;
            }
        }
    }

    /// Where row `r` of the unbordered maps begins, in pixels.
    fn row(&self, r: usize) -> usize {
        let inner = self.inner_height;
        self.margin() + (r / inner * self.stack.height + r % inner + 1) * self.stack.width + 1
    }

    /// Every pixel's number, whether it is inside the borders, and its channels.
    #[inline(always)]
    fn pixels_mut<'a>(
        &self,
        data: &'a mut [f32],
        channels: usize,
    ) -> impl Iterator<Item = (usize, bool, &'a mut [f32])> {
        let pixels = data[self.margin() * channels..].chunks_exact_mut(channels).take(self.pixels());
        let &Self { stack: Stack { height, width, .. }, inner_height, inner_width } = self;
        pixels.enumerate().map(move |(p, pixel)| {
            let (x, y) = (p % width, p / width % height);
            (p, (1..=inner_width).contains(&x) && (1..=inner_height).contains(&y), pixel)
        })
    }

    /// The rows of `3·channels` numbers that kernel row `ky` sees, one for every pixel.
    fn seen<'a>(&self, input: &'a [f32], channels: usize, ky: usize) -> View<'a> {
        View { data: &input[self.first_seen(ky) * channels..], row_stride: channels, column_stride: 1 }
    }

    /// The first pixel, margin included, that kernel row `ky` sees around pixel 0.
    fn first_seen(&self, ky: usize) -> usize {
        self.margin() + ky * self.stack.width - self.stack.width - 1
    }

    /// `output += input * kernel` at every pixel, borders included.
    fn convolve(&self, input: &[f32], inner: usize, kernel: &[Vec<f32>; 3], output: &mut [f32], outer: usize) {
        for (ky, rows) in kernel.iter().enumerate() {
            let shape = (self.pixels(), 3 * inner, outer);
            let product = Product::new(shape, self.seen(input, inner, ky), View::rows(rows, outer));
            Product { start: Start::Output, ..product }.into(&mut output[self.margin() * outer..], outer);
        }
    }

    /// The gradient of a kernel, added in torch's layout `[out, in, 3, 3]`.
    fn kernel_gradient(&self, input: &[f32], inner: usize, grad: &[f32], outer: usize, out: &mut [f32]) {
        for ky in 0..3 {
            let (seen, grad) =
                (self.seen(input, inner, ky).transposed(), View::rows(&grad[self.margin() * outer..], outer));
            let rows = Product::new((3 * inner, self.pixels(), outer), seen, grad).values();
            for (o, i, kx) in indices(outer, inner) {
                out[(o * inner + i) * 9 + ky * 3 + kx] += rows[(kx * inner + i) * outer + o];
            }
        }
    }

    /// Both hidden layers after their ReLU, `hidden.first` and `hidden.second`, which have room for them.
    fn hidden(&self, input: &[f32], layers: &Layers, hidden: &mut Hidden) {
        let Hidden { first, second, scratch } = hidden;
        vectorised!(for (p, is_inside, pixel) in self.pixels_mut(first, CHANNELS) {
            if !is_inside {
                pixel.fill(0.0);
                continue;
            }
            let mut values = layers.first_bias;
            for (ky, [left, middle, right]) in layers.first.iter().enumerate() {
                if let Some([a, b, c]) = input[self.first_seen(ky) + p..].first_chunk() {
                    add_products(&mut values, &[*a; CHANNELS], left);
                    add_products(&mut values, &[*b; CHANNELS], middle);
                    add_products(&mut values, &[*c; CHANNELS], right);
                }
            }
            for (out, value) in pixel.iter_mut().zip(&values) {
                *out = value.max(0.0);
            }
        });
        let (pixels, _) = first[self.margin() * CHANNELS..].as_chunks();
        let outputs = &mut Second { of: self, bias: &layers.second_bias, second };
        layers.second.convolve(pixels, self.stack, scratch, outputs);
    }

    fn forward(&self, maps: &mut [f32], layers: &Layers, hidden: &mut Hidden) {
        self.hidden(&self.load(maps), layers, hidden);
        let (pixels, _) = hidden.second.as_chunks::<CHANNELS>();
        vectorised!({
            for (r, row) in maps.chunks_exact_mut(self.inner_width).enumerate() {
                for (x, out) in row.iter_mut().enumerate() {
                    // The pixel's number without the margin.
                    let pixel = self.row(r) + x - self.margin();
                    let mut values = [0f32; CHANNELS];
                    for (ky, [left, middle, right]) in layers.last.iter().enumerate() {
                        if let Some([a, b, c]) = pixels[self.first_seen(ky) + pixel..].first_chunk() {
                            add_products(&mut values, a, left);
                            add_products(&mut values, b, middle);
                            add_products(&mut values, c, right);
                        }
                    }
                    *out += sum(CHANNELS, |c| values[c]) + layers.last_bias;
                }
            }
        });
    }

    /// Adds the gradient of the maps to `d_maps` (which comes holding that of the sum); returns the parameters'.
    fn backward(&self, maps: &[f32], d_maps: &mut [f32], layers: &Layers) -> Vec<f32> {
        let input = self.load(maps);
        let mut hidden = Hidden::new(self);
        self.hidden(&input, layers, &mut hidden);
        let Hidden { first, second, .. } = hidden;
        let d_last = self.load(d_maps);
        let mut gradient = vec![0f32; split(|n| n).iter().sum()];
        let mut rest = gradient.as_mut_slice();
        let [w1, b1, w2, b2, w3, b3] = split(|n| rest.split_off_mut(..n).unwrap_or_default());
        b3[0] = d_last.iter().sum();
        self.kernel_gradient(&second, CHANNELS, &d_last, 1, w3);
        let [first_flipped, second_flipped, last_flipped] = &layers.flipped;
        let through = |d_out: &[f32], outer: usize, flipped: &[Vec<f32>; 3], hidden: &[f32], bias: &mut [f32]| {
            let mut d_hidden = self.zeros(CHANNELS);
            self.convolve(d_out, outer, flipped, &mut d_hidden, CHANNELS);
            let hidden = &hidden[self.margin() * CHANNELS..];
            vectorised!(for (p, is_inside, pixel) in self.pixels_mut(&mut d_hidden, CHANNELS) {
                if !is_inside {
                    pixel.fill(0.0);
                    continue;
                }
                for ((d, h), bias) in pixel.iter_mut().zip(&hidden[p * CHANNELS..]).zip(&mut *bias) {
                    *d = if *h > 0.0 { *d } else { 0.0 };
                    *bias += *d;
                }
            });
            d_hidden
        };
        let d_second = through(&d_last, 1, last_flipped, &second, b2);
        self.kernel_gradient(&first, CHANNELS, &d_second, CHANNELS, w2);
        let d_first = through(&d_second, CHANNELS, second_flipped, &first, b1);
        self.kernel_gradient(&input, 1, &d_first, CHANNELS, w1);
        let mut d_input = self.zeros(1);
        self.convolve(&d_first, CHANNELS, first_flipped, &mut d_input, 1);
        self.add_to(&d_input, d_maps);
        gradient
    }
}

/// The second hidden layer, as its convolution's outputs come.
struct Second<'a> {
    of: &'a Bordered,
    bias: &'a [f32; CHANNELS],
    second: &'a mut [f32],
}

impl Outputs<CHANNELS> for Second<'_> {
    #[inline(always)]
    fn put(&mut self, place: TilePlace, values: &[[f32; CHANNELS]; TILE * TILE]) {
        for (y, values) in values.chunks_exact(TILE).enumerate() {
            for (x, values) in values.iter().enumerate() {
                let (y, x) = (place.y + y, place.x + x);
                if y < self.of.inner_height && x < self.of.inner_width {
                    let pixel = self.of.row(place.map * self.of.inner_height + y) + x;
                    if let Some(out) = self.second[pixel * CHANNELS..].first_chunk_mut::<CHANNELS>() {
                        for c in 0..CHANNELS {
                            out[c] = (values[c] + self.bias[c]).max(0.0);
                        }
                    }
                }
            }
        }
    }
}

/// How many maps a task takes: fixed by their size, so that sums do not depend on the number of threads.
fn maps_a_task(pixels: usize, height: usize, width: usize) -> usize {
    (pixels / ((height + 2) * (width + 2))).max(1)
}

impl Cpu for ScoreHead {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let (maps, parameters) = (&inputs[0], &inputs[1]);
        // Where the CPU is to do what a GPU does: there no run is in bf16.
        if self.0 == Precision::Bf16 {
            return Ok((self.reference(inputs)?, vec![]));
        }
        let (_, height, width) = maps.dims3()?;
        let layers = Layers::new(&Values::of(parameters)?);
        let mut out = Values::of(maps)?.to_vec();
        let size = maps_a_task(PIXELS_A_TASK, height, width) * height * width;
        let hidden = || Hidden::new(&Bordered::new(size, height, width));
        out.par_chunks_mut(size).for_each_init(hidden, |hidden, maps| {
            Bordered::new(maps.len(), height, width).forward(maps, &layers, hidden)
        });
        Ok((Tensor::from_vec(out, maps.shape(), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (maps, parameters) = (saved.input(0)?, saved.input(1)?);
        let (_, height, width) = maps.dims3()?;
        let layers = Layers::new(&Values::of(parameters)?);
        let values = Values::of(maps)?;
        let mut d_maps = Values::of(&gradient)?.to_vec();
        let size = maps_a_task(PIXELS_A_TASK_BACKWARD, height, width) * height * width;
        let parts: Vec<Vec<f32>> = d_maps
            .par_chunks_mut(size)
            .zip(values.par_chunks(size))
            .map(|(d_maps, maps)| Bordered::new(maps.len(), height, width).backward(maps, d_maps, &layers))
            .collect();
        let mut d_parameters = vec![0f32; parameters.elem_count()];
        for part in &parts {
            d_parameters.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        gradients.add(0, Tensor::from_vec(d_maps, maps.shape(), &Device::Cpu)?)?;
        gradients.add(1, Tensor::from_vec(d_parameters, parameters.shape(), &Device::Cpu)?)
    }
}
