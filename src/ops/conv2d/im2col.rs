//! Unfolding a map for the product that a convolution is (im2col), on the CPU: some output rows at a time, from input rows
//! that are normed or upsampled as they are read.
use super::layer::Conv2d;
use crate::kernels::cpu::{sigmoid, vectorised};
use std::ops::Range;

/// Which input values an output value of a convolution is made of.
pub struct Im2col<'a> {
    pub conv: &'a Conv2d,
    /// Height and width of the map in memory.
    pub map: (usize, usize),
    /// Whether the input has twice its height and width: nearest neighbours.
    pub is_upsampled: bool,
}

/// Memory of one thread.
#[derive(Default)]
pub struct Scratch {
    /// Rows of one channel with their padding.
    lines: Vec<f32>,
    /// `[channels · kernel, pixels]`.
    pub unfolded: Vec<f32>,
}

/// Scales and offsets of the channels of one image, after which comes SiLU.
pub type Norm<'a> = (&'a [f32], &'a [f32]);

impl Im2col<'_> {
    /// Height and width of the padded input.
    fn padded(&self) -> (usize, usize) {
        let (height, width) = self.input();
        (height + self.conv.rows.0 + self.conv.rows.1, width + self.conv.columns.0 + self.conv.columns.1)
    }

    /// Height and width of the input.
    pub fn input(&self) -> (usize, usize) {
        let factor = if self.is_upsampled { 2 } else { 1 };
        (self.map.0 * factor, self.map.1 * factor)
    }

    /// Height and width of the output; none where the padded input is smaller than the kernel.
    pub fn output(&self) -> Option<(usize, usize)> {
        let (height, width) = self.padded();
        let places = |padded: usize, kernel: usize| Some(padded.checked_sub(kernel)? / self.conv.stride + 1);
        Some((places(height, self.conv.kernel.0)?, places(width, self.conv.kernel.1)?))
    }

    /// Values that an output pixel is made of.
    pub fn depth(&self) -> usize {
        self.conv.channels * self.conv.kernel.0 * self.conv.kernel.1
    }

    /// Rows of the padded input that these output rows are made of.
    pub fn read_by(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.conv.stride..(rows.end - 1) * self.conv.stride + self.conv.kernel.0
    }

    /// Rows of the input among rows of the padded input.
    pub fn without_padding(&self, padded: &Range<usize>) -> Range<usize> {
        let row = |padded: usize| padded.saturating_sub(self.conv.rows.0).min(self.input().0);
        row(padded.start)..row(padded.end)
    }

    /// Whether an output value is made of the map's values in its own place and nothing else.
    pub fn is_identity(&self) -> bool {
        (self.conv.kernel, self.conv.stride, self.is_upsampled) == ((1, 1), 1, false)
    }

    /// Unfolds output rows `rows`, `out_width` wide, of an image `[channels, map]`.
    pub fn unfold(
        &self,
        image: &[f32],
        norm: Option<Norm>,
        (rows, out_width): (Range<usize>, usize),
        Scratch { lines, unfolded }: &mut Scratch,
    ) {
        let read = self.read_by(&rows);
        let width = self.padded().1;
        // Of the values that stay from the last time none is read.
        lines.resize(read.len() * width, 0.0);
        unfolded.resize(self.depth() * rows.len() * out_width, 0.0);
        let mut unfolded = unfolded.chunks_exact_mut(out_width);
        for (channel, plane) in image.chunks_exact(self.map.0 * self.map.1).enumerate() {
            let norm = norm.map(|(scales, offsets)| (scales[channel], offsets[channel]));
            for (row, line) in read.clone().zip(lines.chunks_exact_mut(width)) {
                self.read_row(plane, norm, row, line);
            }
            for ky in 0..self.conv.kernel.0 {
                for kx in 0..self.conv.kernel.1 {
                    for (row, out) in (0..rows.len()).zip(&mut unfolded) {
                        let line = &lines[(row * self.conv.stride + ky) * width + kx..];
                        match self.conv.stride {
                            1 => out.copy_from_slice(&line[..out_width]),
                            stride => out.iter_mut().zip(line.iter().step_by(stride)).for_each(|(out, v)| *out = *v),
                        }
                    }
                }
            }
        }
    }

    /// Row `row` of the padded input, made of one channel's `plane`.
    fn read_row(&self, plane: &[f32], norm: Option<(f32, f32)>, row: usize, line: &mut [f32]) {
        let (height, width) = self.input();
        let row = row.wrapping_sub(self.conv.rows.0);
        if row >= height {
            return line.fill(0.0);
        }
        let (before, line) = line.split_at_mut(self.conv.columns.0);
        let (line, after) = line.split_at_mut(width);
        before.fill(0.0);
        after.fill(0.0);
        let source = |row: usize| &plane[row * self.map.1..][..self.map.1];
        match norm {
            _ if self.is_upsampled => {
                line.as_chunks_mut().0.iter_mut().zip(source(row / 2)).for_each(|(pair, &value)| *pair = [value; 2])
            }
            Some((scale, offset)) => vectorised!(line.iter_mut().zip(source(row)).for_each(|(out, value)| {
                let value = value * scale + offset;
                *out = value * sigmoid(value);
            })),
            None => line.copy_from_slice(source(row)),
        }
    }
}
