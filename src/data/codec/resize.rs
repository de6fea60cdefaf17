//! Resizing of 8-bit pictures with antialiasing, bit-exact with Pillow 13 (`Resample.c`).
//!
//! Two fixed-point passes, horizontal and vertical, each rounded to bytes. Resizers with other rounding differ by one
//! in a fifth of the values.
use crate::system::vectors::vectorised;
use image::RgbImage;
use std::{iter::repeat_n, ops::Range};

/// Fractional bits of Pillow's fixed-point weights.
const PRECISION: u32 = 32 - 8 - 2;
/// The accumulators' start value, one half, so that the right shift rounds.
const HALF: i32 = 1 << (PRECISION - 1);
/// Rows resized side by side.
const LANES: usize = 4;

/// An interpolation kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Bilinear,
    /// Keys' cubic with a = −0.5.
    Bicubic,
}

impl Filter {
    /// Radius of the kernel's support.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Self::Bicubic => 0.0,
        }
    }
}

/// Resizes to `width` × `height` (Pillow: `image.resize((width, height), Image.BILINEAR)`).
pub fn bilinear(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    bilinear_window(image, (width, height), 0..width, 0..height)
}

/// Resizes to `width` × `height` (Pillow: `image.resize((width, height), Image.BICUBIC)`).
pub fn bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    window(image, (width, height), 0..width, 0..height, Filter::Bicubic)
}

/// The window `columns` × `rows` of the picture resized to `size` (width, height), without computing the rest.
///
/// # Panics
/// If the window is not inside `size`.
pub fn bilinear_window(image: &RgbImage, size: (u32, u32), columns: Range<u32>, rows: Range<u32>) -> RgbImage {
    window(image, size, columns, rows, Filter::Bilinear)
}

fn window(image: &RgbImage, size: (u32, u32), columns: Range<u32>, rows: Range<u32>, filter: Filter) -> RgbImage {
    assert!(columns.end <= size.0 && rows.end <= size.1, "window {columns:?} × {rows:?} of {size:?}");
    let mut window = RgbImage::new(columns.len() as u32, rows.len() as u32);
    if window.is_empty() || image.is_empty() {
        return window;
    }
    let across = FilterTaps::new(image.width(), size.0, columns, filter);
    let down = FilterTaps::new(image.height(), size.1, rows, filter);
    vectorised!(both_passes(image, (&across, &down), size, &mut window));
    window
}

#[inline(always)]
fn both_passes(image: &RgbImage, (across, down): (&FilterTaps, &FilterTaps), size: (u32, u32), window: &mut RgbImage) {
    let (line, window_line) = (image.width() as usize * 3, window.width() as usize * 3);
    let needed = &image.as_raw()[down.inputs.start * line..down.inputs.end * line];
    if is_vertical_first(image.dimensions(), size) {
        let mut flat = vec![0; line * window.height() as usize];
        vertical(needed, &mut flat, line, down);
        horizontal(&flat, line, window, across);
    } else {
        let mut narrow = vec![0; down.inputs.len() * window_line];
        horizontal(needed, line, &mut narrow, across);
        vertical(&narrow, window, window_line, down);
    }
}
/// Whether the vertical pass runs first, which affects rounding. Up to Pillow 12 the horizontal pass always does; in
/// Pillow 13 the vertical pass does if it drops more than twice as many rows as the horizontal drops columns (found by
/// experiment on thousands of sizes).
fn is_vertical_first(from: (u32, u32), to: (u32, u32)) -> bool {
    let dropped = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let rows = dropped(from.1, to.1);
    rows > 0 && rows > 2 * dropped(from.0, to.0)
}

/// The horizontal pass; rows of `source` take `line` bytes.
#[inline(always)]
fn horizontal(source: &[u8], line: usize, target: &mut [u8], taps: &FilterTaps) {
    let target_line = taps.first.len() * 3;
    // The input pixels of LANES rows, interleaved and padded to four bytes each, one vector a pixel.
    let mut strip = vec![[0u8; 4 * LANES]; taps.inputs.len()];
    for (sources, targets) in source.chunks(LANES * line).zip(target.chunks_mut(LANES * target_line)) {
        for (lane, row) in sources.chunks_exact(line).enumerate() {
            let row = &row[taps.inputs.start * 3..taps.inputs.end * 3];
            for (pixels, pixel) in strip.iter_mut().zip(row.chunks_exact(3)) {
                pixels[4 * lane..4 * lane + 3].copy_from_slice(pixel);
            }
        }
        for (column, (first, weights)) in taps.iter().enumerate() {
            let mut sums = [HALF; 4 * LANES];
            for (pixels, weight) in strip[first..].iter().zip(weights) {
                add(&mut sums, pixels, *weight);
            }
            let bytes = sums.map(clip);
            for (row, pixel) in targets.chunks_exact_mut(target_line).zip(bytes.chunks_exact(4)) {
                row[column * 3..column * 3 + 3].copy_from_slice(&pixel[..3]);
            }
        }
    }
}

/// The vertical pass over rows of `line` bytes; `source` starts with the first input row of `taps`.
#[inline(always)]
fn vertical(source: &[u8], target: &mut [u8], line: usize, taps: &FilterTaps) {
    let mut sums = vec![0i32; line];
    for (target, (first, weights)) in target.chunks_exact_mut(line).zip(taps.iter()) {
        sums.fill(HALF);
        for (row, weight) in source[first * line..].chunks_exact(line).zip(weights) {
            add(&mut sums, row, *weight);
        }
        for (byte, sum) in target.iter_mut().zip(&sums) {
            *byte = clip(*sum);
        }
    }
}

#[inline(always)]
fn add(sums: &mut [i32], bytes: &[u8], weight: i32) {
    for (sum, byte) in sums.iter_mut().zip(bytes) {
        *sum += i32::from(*byte) * weight;
    }
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Filter taps of each output position. When shrinking, the kernel is stretched to the width of an output pixel.
struct FilterTaps {
    /// The range of inputs used.
    inputs: Range<usize>,
    /// First input of each output, relative to `inputs.start`.
    first: Vec<usize>,
    /// `[outputs, taps]`: weights of the inputs from `first`, zero-padded.
    weights: Vec<i32>,
}

impl FilterTaps {
    /// The taps of the non-empty range `positions` of `to` outputs over `from` inputs.
    fn new(from: u32, to: u32, positions: Range<u32>, filter: Filter) -> Self {
        if from == to {
            // Pillow skips this pass; one tap of weight 1 gives equal values.
            let weights = vec![1 << PRECISION; positions.len()];
            let inputs = positions.start as usize..positions.end as usize;
            return Self { inputs, first: (0..positions.len()).collect(), weights };
        }
        let scale = f64::from(from) / f64::from(to);
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let center = |position: u32| (f64::from(position) + 0.5) * scale;
        let first = |position: u32| (center(position) - support + 0.5).max(0.0) as usize;
        let end = |position: u32| ((center(position) + support + 0.5) as usize).min(from as usize);
        let inputs = first(positions.start)..end(positions.end - 1);
        let count = positions.clone().map(|position| end(position) - first(position)).max().unwrap_or(0);
        let mut weights = Vec::with_capacity(positions.len() * count);
        for position in positions.clone() {
            let weight = |input: usize| filter.weight((input as f64 - center(position) + 0.5) / stretch);
            let taken = first(position)..end(position);
            let total: f64 = taken.clone().map(weight).sum();
            let rounded = |input: usize| (weight(input) / total * f64::from(1u32 << PRECISION)).round() as i32;
            let unused = count - taken.len();
            weights.extend(taken.map(rounded).chain(repeat_n(0, unused)));
        }
        Self { first: positions.map(|position| first(position) - inputs.start).collect(), inputs, weights }
    }

    /// First input and weights of each output.
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let count = self.weights.len() / self.first.len();
        self.first.iter().copied().zip(self.weights.chunks_exact(count))
    }
}
