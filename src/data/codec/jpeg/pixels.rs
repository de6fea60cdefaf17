//! JPEG coefficients to pixels, in the integer arithmetic of libjpeg-turbo (`jdsample.c`, `jdcolor.c`).
use super::header::{Component, Frame, Tables};
use super::inverse_dct::{LANES, inverse_dct};
use crate::data::codec::photograph::rgb::from_cmyk;
use crate::system::vectors::vectorised;
use image::RgbImage;

/// The decoded picture; `None` if a quantisation table is missing or components do not match.
pub fn picture(frame: &Frame, tables: &Tables) -> Option<RgbImage> {
    vectorised!(every_row(frame, tables))
}

/// [`picture`], compiled for each vector width.
#[inline(always)]
fn every_row(frame: &Frame, tables: &Tables) -> Option<RgbImage> {
    let mut channels = Vec::with_capacity(frame.components.len());
    for component in &frame.components {
        let table = tables.quantisation.get(component.quantisation)?.as_ref()?;
        let factors = factors(component, frame)?;
        let (sums, line) = (vec![0; component.width + 2], vec![0; frame.width + 1]);
        channels.push(Channel { plane: Plane::new(component, table), factors, sums, line });
    }
    let mut picture = RgbImage::new(frame.width as u32, frame.height as u32);
    let is_rgb = is_rgb(frame, tables);
    // Whether four components are YCbCr and black rather than CMYK.
    let is_ycck = tables.adobe.is_some_and(|transform| transform != 0);
    for (row, pixels) in picture.chunks_exact_mut(frame.width * 3).enumerate() {
        for channel in &mut channels {
            channel.enlarge(row);
        }
        match &channels[..] {
            [grey] => {
                for (pixel, &value) in pixels.chunks_exact_mut(3).zip(&grey.line) {
                    pixel.fill(value);
                }
            }
            [first, second, third] => {
                let values = first.line.iter().zip(&second.line).zip(&third.line);
                for (pixel, ((&first, &second), &third)) in pixels.chunks_exact_mut(3).zip(values) {
                    let values = [first, second, third];
                    pixel.copy_from_slice(&if is_rgb { values } else { rgb(values) });
                }
            }
            [first, second, third, black] => {
                let values = first.line.iter().zip(&second.line).zip(&third.line).zip(&black.line);
                for (pixel, (((&first, &second), &third), &black)) in pixels.chunks_exact_mut(3).zip(values) {
                    // Adobe's files hold what is left of the light, not the ink, and Pillow takes all for Adobe's. YCCK
                    // is the YCbCr of the ink.
                    let values = [first, second, third];
                    let ink = if is_ycck { rgb(values) } else { values.map(|value| 255 - value) };
                    pixel.copy_from_slice(&from_cmyk([ink[0], ink[1], ink[2], 255 - black]));
                }
            }
            _ => return None,
        }
    }
    Some(picture)
}

/// Whether three components are red, green and blue rather than YCbCr.
fn is_rgb(frame: &Frame, tables: &Tables) -> bool {
    let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
    match tables.adobe {
        _ if tables.jfif => false,
        Some(transform) => transform == 0,
        None => ids == *b"RGB",
    }
}

#[inline(always)]
fn rgb([y, blue, red]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, blue, red) = (i32::from(y), i32::from(blue) - 128, i32::from(red) - 128);
    let clip = |value: i32| value.clamp(0, 255) as u8;
    [
        clip(y + ((91881 * red + HALF) >> 16)),
        clip(y + ((-22554 * blue - 46802 * red + HALF) >> 16)),
        clip(y + ((116130 * blue + HALF) >> 16)),
    ]
}

/// Upsampling factors of a component, horizontal and vertical; `None` unless whole numbers.
fn factors(component: &Component, frame: &Frame) -> Option<(usize, usize)> {
    let divide = |most: usize, factor: usize| most.is_multiple_of(factor).then_some(most / factor);
    Some((divide(frame.horizontal, component.horizontal)?, divide(frame.vertical, component.vertical)?))
}

/// A component's samples in rows of whole blocks.
struct Plane {
    /// Size without padding.
    width: usize,
    height: usize,
    /// Samples in a row, padding included.
    stride: usize,
    samples: Vec<u8>,
}

impl Plane {
    /// Inverse DCT of all blocks.
    #[inline(always)]
    fn new(component: &Component, quantisation: &[u16; 64]) -> Self {
        let stride = component.blocks_across * 8;
        let mut samples = vec![0; component.coefficients.len() * 64];
        let blocks = component.coefficients.chunks_exact(component.blocks_across);
        for (blocks, rows) in blocks.zip(samples.chunks_exact_mut(8 * stride)) {
            for (group, blocks) in blocks.chunks(LANES).enumerate() {
                let values = inverse_dct(blocks, quantisation);
                for (line, values) in rows.chunks_exact_mut(stride).zip(values.chunks_exact(8)) {
                    let line = &mut line[group * LANES * 8..];
                    for (lane, samples) in line.chunks_exact_mut(8).take(blocks.len()).enumerate() {
                        for (sample, values) in samples.iter_mut().zip(values) {
                            *sample = values[lane];
                        }
                    }
                }
            }
        }
        Self { width: component.width, height: component.height, stride, samples }
    }

    fn row(&self, row: usize) -> &[u8] {
        &self.samples[row.min(self.height - 1) * self.stride..][..self.width]
    }
}

/// A component upsampled to the frame's size, row by row.
struct Channel {
    plane: Plane,
    /// Upsampling factors, horizontal and vertical.
    factors: (usize, usize),
    /// Weighted column sums, with the first and last repeated at the ends.
    sums: Vec<u32>,
    /// The current output row, with room for one more pixel.
    line: Vec<u8>,
}

impl Channel {
    /// Computes output row `row`: libjpeg's "fancy" (triangle filter) upsampling by 2, otherwise replication.
    #[inline(always)]
    fn enlarge(&mut self, row: usize) {
        let Self { plane, factors, sums, line } = self;
        let (source, sums_inside) = (plane.row(row / factors.1), 1..=plane.width);
        // The second nearest source row.
        let other = plane.row(if row.is_multiple_of(2) { (row / 2).saturating_sub(1) } else { row / 2 + 1 });
        let smooth = plane.width > 2;
        match *factors {
            (1, 1) => line[..plane.width].copy_from_slice(source),
            (2, 1) if smooth => {
                for (sum, &value) in sums[sums_inside].iter_mut().zip(source) {
                    *sum = u32::from(value);
                }
                widen(sums, line, 1, 2, 2);
            }
            (2, 2) if smooth => {
                column_sums(&mut sums[sums_inside], source, other);
                widen(sums, line, 8, 7, 4);
            }
            (1, 2) => {
                column_sums(&mut sums[sums_inside.clone()], source, other);
                let bias = if row.is_multiple_of(2) { 1 } else { 2 };
                for (pixel, sum) in line.iter_mut().zip(&sums[sums_inside]) {
                    *pixel = ((sum + bias) >> 2) as u8;
                }
            }
            (across, _) => {
                for (pixels, &value) in line.chunks_mut(across).zip(source) {
                    pixels.fill(value);
                }
            }
        }
    }
}

/// ¾ of the nearer row and ¼ of the farther, times 4.
#[inline(always)]
fn column_sums(sums: &mut [u32], near: &[u8], far: &[u8]) {
    for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
        *sum = 3 * u32::from(near) + u32::from(far);
    }
}

/// Doubles a row with the triangle filter: ¾ of the nearer value and ¼ of the next. The biases `left` and `right`
/// alternate, so that rounding by `shift` is unbiased. `sums` has room for repeated ends.
#[inline(always)]
fn widen(sums: &mut [u32], line: &mut [u8], left: u32, right: u32, shift: u32) {
    let last = sums.len() - 1;
    (sums[0], sums[last]) = (sums[1], sums[last - 1]);
    for (pair, near) in line.chunks_exact_mut(2).zip(sums.windows(3)) {
        pair[0] = ((3 * near[1] + near[0] + left) >> shift) as u8;
        pair[1] = ((3 * near[1] + near[2] + right) >> shift) as u8;
    }
}
