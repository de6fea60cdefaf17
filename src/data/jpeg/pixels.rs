//! From a JPEG's coefficients to pixels, in the integer arithmetic of libjpeg-turbo
//! (`jidctint.c`, `jdsample.c`, `jdcolor.c`).
use super::header::{Component, Frame, Tables};
use image::RgbImage;

/// A channel's samples, `width` × `height` of them.
struct Plane {
    width: usize,
    height: usize,
    samples: Vec<u8>,
}

impl Plane {
    fn row(&self, row: usize) -> &[u8] {
        &self.samples[row * self.width..][..self.width]
    }
}

pub fn picture(frame: &Frame, tables: &Tables) -> Option<RgbImage> {
    let planes = frame
        .components
        .iter()
        .map(|component| {
            let table = tables.quantisation.get(component.quantisation)?.as_ref()?;
            enlarge(samples(component, table), component, frame)
        })
        .collect::<Option<Vec<_>>>()?;
    let pixels = match &planes[..] {
        [grey] => grey.samples.iter().flat_map(|&value| [value; 3]).collect(),
        [red, green, blue] => {
            let channels = red.samples.iter().zip(&green.samples).zip(&blue.samples);
            let pixels = channels.map(|((&a, &b), &c)| [a, b, c]);
            match is_rgb(frame, tables) {
                true => pixels.flatten().collect(),
                false => pixels.flat_map(rgb).collect(),
            }
        }
        _ => return None,
    };
    RgbImage::from_raw(frame.width as u32, frame.height as u32, pixels)
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

fn rgb([y, blue, red]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, blue, red) = (i32::from(y), i32::from(blue) - 128, i32::from(red) - 128);
    let channels = [
        y + ((91881 * red + HALF) >> 16),
        y + ((-22554 * blue - 46802 * red + HALF) >> 16),
        y + ((116130 * blue + HALF) >> 16),
    ];
    channels.map(|value| value.clamp(0, 255) as u8)
}

/// Inverse transforms of all blocks, cut to the samples that carry picture.
fn samples(component: &Component, quantisation: &[u16; 64]) -> Plane {
    let (width, height) = (component.width, component.height);
    let mut samples = vec![0; width * height];
    for (index, block) in component.coefficients.iter().enumerate() {
        let (left, top) = (index % component.blocks_across * 8, index / component.blocks_across * 8);
        if left >= width || top >= height {
            continue;
        }
        let pixels = inverse_dct(block, quantisation);
        let across = (width - left).min(8);
        for (row, line) in pixels.chunks_exact(8).take(height - top).enumerate() {
            samples[(top + row) * width + left..][..across].copy_from_slice(&line[..across]);
        }
    }
    Plane { width, height, samples }
}

/// The slow, exact integer transform: columns with 2 extra bits, then rows.
fn inverse_dct(block: &[i16; 64], quantisation: &[u16; 64]) -> [u8; 64] {
    let mut middle = [0i64; 64];
    for column in 0..8 {
        let values = std::array::from_fn(|row| {
            let place = row * 8 + column;
            i64::from(block[place]) * i64::from(quantisation[place])
        });
        for (row, value) in butterfly(values).into_iter().enumerate() {
            middle[row * 8 + column] = (value + (1 << 10)) >> 11;
        }
    }
    let mut pixels = [0; 64];
    for (line, values) in pixels.chunks_exact_mut(8).zip(middle.chunks_exact(8)) {
        let values = butterfly(std::array::from_fn(|column| values[column]));
        for (pixel, value) in line.iter_mut().zip(values) {
            *pixel = (((value + (1 << 17)) >> 18) + 128).clamp(0, 255) as u8;
        }
    }
    pixels
}

/// One-dimensional inverse transform of 8 values, times 2¹³ (Loeffler, Ligtenberg and Moschytz).
fn butterfly(input: [i64; 8]) -> [i64; 8] {
    let shared = (input[2] + input[6]) * 4433;
    let (even2, even3) = (shared - input[6] * 15137, shared + input[2] * 6270);
    let (even0, even1) = ((input[0] + input[4]) << 13, (input[0] - input[4]) << 13);
    let even = [even0 + even3, even1 + even2, even1 - even2, even0 - even3];

    let z1 = (input[7] + input[1]) * -7373;
    let z2 = (input[5] + input[3]) * -20995;
    let z5 = (input[7] + input[3] + input[5] + input[1]) * 9633;
    let z3 = (input[7] + input[3]) * -16069 + z5;
    let z4 = (input[5] + input[1]) * -3196 + z5;
    let odd =
        [input[1] * 12299 + z1 + z4, input[3] * 25172 + z2 + z3, input[5] * 16819 + z2 + z4, input[7] * 2446 + z1 + z3];
    std::array::from_fn(|index| match index {
        0..4 => even[index] + odd[index],
        _ => even[7 - index] - odd[7 - index],
    })
}

/// A channel at the frame's size: the smooth enlargement of libjpeg by 2, else repetition.
fn enlarge(plane: Plane, component: &Component, frame: &Frame) -> Option<Plane> {
    if !frame.horizontal.is_multiple_of(component.horizontal) || !frame.vertical.is_multiple_of(component.vertical) {
        return None;
    }
    let factors = (frame.horizontal / component.horizontal, frame.vertical / component.vertical);
    if factors == (1, 1) {
        return Some(plane);
    }
    let smooth = plane.width > 2;
    let mut samples = vec![0; frame.width * frame.height];
    let mut sums = vec![0; plane.width];
    for (row, line) in samples.chunks_exact_mut(frame.width).enumerate() {
        let source = plane.row(row / factors.1);
        // The other of the two rows that an enlarged row lies between.
        let other = match row % 2 {
            0 => plane.row((row / 2).saturating_sub(1).min(plane.height - 1)),
            _ => plane.row((row / 2 + 1).min(plane.height - 1)),
        };
        match factors {
            (2, 1) if smooth => {
                sums.iter_mut().zip(source).for_each(|(sum, &value)| *sum = u32::from(value));
                widen(&sums, line, 1, 2, 2);
            }
            (2, 2) if smooth => {
                column_sums(&mut sums, source, other);
                widen(&sums, line, 8, 7, 4);
            }
            (1, 2) => {
                column_sums(&mut sums, source, other);
                let bias = if row % 2 == 0 { 1 } else { 2 };
                line.iter_mut().zip(&sums).for_each(|(pixel, sum)| *pixel = ((sum + bias) >> 2) as u8);
            }
            (across, _) => {
                let repeated = source.iter().flat_map(|&value| std::iter::repeat_n(value, across));
                line.iter_mut().zip(repeated).for_each(|(pixel, value)| *pixel = value);
            }
        }
    }
    Some(Plane { width: frame.width, height: frame.height, samples })
}

/// Three parts of the nearer row and one of the other.
fn column_sums(sums: &mut [u32], near: &[u8], far: &[u8]) {
    for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
        *sum = 3 * u32::from(near) + u32::from(far);
    }
}

/// Doubles a row: each pixel is three parts of the nearer value and one of the next. `left` and `right` are added
/// before `shift` for rounding, in turns up and down so that no bias remains.
fn widen(sums: &[u32], line: &mut [u8], left: u32, right: u32, shift: u32) {
    for (index, pair) in line.chunks_mut(2).enumerate() {
        let value = sums[index];
        let before = if index == 0 { value } else { sums[index - 1] };
        let after = sums.get(index + 1).copied().unwrap_or(value);
        let pixels = [(3 * value + before + left) >> shift, (3 * value + after + right) >> shift];
        pair.iter_mut().zip(pixels).for_each(|(pixel, value)| *pixel = value as u8);
    }
}
