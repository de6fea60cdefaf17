//! Two-dimensional convolution of frozen networks (autoencoder, feature networks), forward only.
//!
//! What it reads can be normed or upsampled row by row on the way ([`Input`]), and its output can be added to a map that is
//! in memory already: of a large picture no map is made but those that layers hand on.
mod im2col;
mod layer;
mod on_cpu;

use super::group_norm::{Affine, GroupNorm};
use candle_core::{DType, Result, Tensor, bail};
use im2col::Im2col;
use std::ops::Range;

pub use layer::{Conv2d, Stride};

/// Values that candle's convolution unfolds at a time: 256 MiB in f32.
const UNFOLDED_VALUES: usize = 1 << 26;

/// Bytes that a 3×3 convolution of a map of `bytes` takes for a moment on a GPU, besides its input and output: rows that are
/// unfolded, and by count a third of that for what they are made of and become.
pub fn unfolding_on_gpu(bytes: u64) -> u64 {
    (9 * bytes).min(4 * UNFOLDED_VALUES as u64) / 3 * 4
}

/// What a convolution takes from a map `[batch, in, height, width]`.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// The map as it is.
    Map(&'a Tensor),
    /// The map after a group norm and SiLU.
    NormSilu(&'a Tensor, &'a GroupNorm),
    /// The map at twice its height and width, by nearest neighbours.
    Upsampled(&'a Tensor),
}

impl<'a> Input<'a> {
    fn map(&self) -> &'a Tensor {
        match self {
            Self::Map(map) | Self::NormSilu(map, _) | Self::Upsampled(map) => map,
        }
    }
}

impl Conv2d {
    /// `[batch, in, height, width]` to `[batch, out, out height, out width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_from(Input::Map(x))
    }

    /// `[batch, out, out height, out width]`.
    pub fn forward_from(&self, input: Input) -> Result<Tensor> {
        let x = input.map();
        let im2col = self.im2col(&input)?;
        let y = Tensor::zeros(&self.shape(x, &im2col)?, x.dtype(), x.device())?;
        self.write(input, &im2col, &y, false, UNFOLDED_VALUES)?;
        Ok(y)
    }

    /// Adds the output to `sum`, of the output's shape. It is written in place: no other tensor may share its memory.
    pub fn add_to(&self, sum: Tensor, input: Input) -> Result<Tensor> {
        let im2col = self.im2col(&input)?;
        let shape = self.shape(input.map(), &im2col)?;
        if sum.dims() != shape || !sum.is_contiguous() {
            bail!("conv2d: output {shape:?} cannot be added to {:?}", sum.layout())
        }
        self.write(input, &im2col, &sum, true, UNFOLDED_VALUES)?;
        Ok(sum)
    }

    fn im2col(&self, input: &Input) -> Result<Im2col<'_>> {
        let (_, channels, height, width) = input.map().dims4()?;
        if channels != self.channels {
            bail!("conv2d: input {:?} for weight {:?}", input.map().shape(), self.weight.shape())
        }
        Ok(Im2col { conv: self, map: (height, width), is_upsampled: matches!(input, Input::Upsampled(_)) })
    }

    /// Shape of the output.
    fn shape(&self, x: &Tensor, im2col: &Im2col) -> Result<[usize; 4]> {
        match im2col.output() {
            Some((height, width)) => Ok([x.dim(0)?, self.bias.elem_count(), height, width]),
            None => bail!("conv2d: input {:?} for weight {:?}", x.shape(), self.weight.shape()),
        }
    }

    /// Writes the output to `y`, or adds it; candle's convolution unfolds no more than `most` values, or one row's.
    fn write(&self, input: Input, im2col: &Im2col, y: &Tensor, adds: bool, most: usize) -> Result<()> {
        let x = input.map().contiguous()?;
        let norm = if let Input::NormSilu(map, norm) = input { Some(norm.affine(map)?) } else { None };
        if x.device().is_cpu() && x.dtype() == DType::F32 && self.weight.dtype() == DType::F32 {
            return on_cpu::write(im2col, &x, norm.as_ref(), y, adds);
        }
        let (batch, _, height, width) = y.dims4()?;
        let rows = (most / (batch * im2col.depth() * width).max(1)).clamp(1, height);
        let bias = self.bias.reshape((1, (), 1, 1))?;
        for first in (0..height).step_by(rows) {
            let rows = first..height.min(first + rows);
            let x = rows_of(&x, im2col, norm.as_ref(), im2col.read_by(&rows))?;
            let mut part = x.conv2d(&self.weight, 0, self.stride, 1, 1)?.broadcast_add(&bias)?;
            if adds {
                part = (part + y.narrow(2, first, rows.len())?)?;
            }
            if self.relu {
                part = part.relu()?;
            }
            y.slice_set(&part.contiguous()?, 2, first)?;
        }
        Ok(())
    }
}

/// Rows `padded` of the padded input, in candle's operations: all of a large picture would take gigabytes.
fn rows_of(x: &Tensor, im2col: &Im2col, norm: Option<&Affine>, padded: Range<usize>) -> Result<Tensor> {
    let rows = im2col.without_padding(&padded);
    let x = if im2col.is_upsampled {
        let from_map = rows.start / 2..rows.end.div_ceil(2);
        let x = x.narrow(2, from_map.start, from_map.len())?.contiguous()?;
        let x = x.upsample_nearest2d(2 * from_map.len(), im2col.input().1)?;
        x.narrow(2, rows.start - 2 * from_map.start, rows.len())?
    } else {
        x.narrow(2, rows.start, rows.len())?
    };
    let x = match norm {
        Some(norm) => norm.apply(&x)?.silu()?,
        None => x,
    };
    let above = im2col.conv.rows.0.saturating_sub(padded.start);
    let x = x.pad_with_zeros(2, above, padded.len() - above - rows.len())?;
    x.pad_with_zeros(3, im2col.conv.columns.0, im2col.conv.columns.1)?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
    }

    fn wide(tensor: &Tensor) -> Tensor {
        tensor.to_dtype(DType::F64).unwrap()
    }

    fn largest(tensor: &Tensor) -> f64 {
        tensor.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// The output in f64, unfolding no more than `most` values.
    fn in_bands(conv: &Conv2d, input: Input, sum: Option<&Tensor>, most: usize) -> Result<Tensor> {
        let im2col = conv.im2col(&input)?;
        let shape = conv.shape(input.map(), &im2col)?;
        let y = match sum {
            Some(sum) => sum.copy()?,
            None => Tensor::ones(&shape, DType::F64, &Device::Cpu)?,
        };
        conv.write(input, &im2col, &y, sum.is_some(), most)?;
        Ok(y)
    }

    /// f64 takes candle's own convolution, as a GPU does.
    #[test]
    fn the_direct_form_is_the_composed_one() {
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
                    let off = (in_bands(&exact, Input::Map(&wide(&x)), None, most).unwrap() - &expected).unwrap();
                    assert!(largest(&off) < 1e-12, "{kernel:?} of stride {stride} in bands of {most}");
                }
                let found = direct.forward(&x).unwrap();
                assert_eq!(found.shape(), expected.shape(), "{kernel:?} of stride {stride}");
                // Relative: sums of up to 75 products have any size.
                let off = largest(&(wide(&found) - &expected).unwrap()) / largest(&expected).max(1.0);
                assert!(off < 1e-6, "{kernel:?} of stride {stride} on {height}×{width}: {off}");
            }
        }
    }

    /// Reading a map through norm and SiLU, or upsampled, and adding in place, against each step by itself.
    #[test]
    fn what_is_done_on_the_way_is_what_is_done_before_and_after() {
        let (norm_weight, norm_bias) = (random(&[6]), random(&[6]));
        let norm = GroupNorm::new(norm_weight.clone(), norm_bias.clone(), 3, 1e-6).unwrap();
        let exact_norm = GroupNorm::new(wide(&norm_weight), wide(&norm_bias), 3, 1e-6).unwrap();
        for (batch, height, width, kernel, stride) in [
            (1, 2, 2, 3, Stride::One),
            (2, 7, 5, 3, Stride::One),
            (3, 8, 11, 1, Stride::One),
            (2, 9, 4, 3, Stride::Two),
            (9, 6, 6, 3, Stride::One),
            // Many tiles, the last of them smaller.
            (1, 301, 410, 3, Stride::One),
        ] {
            let case = format!("{batch} of {height}×{width}, kernel {kernel}, {stride:?}");
            let (x, weight, bias) = (random(&[batch, 6, height, width]), random(&[4, 6, kernel, kernel]), random(&[4]));
            let exact = Conv2d::new(wide(&weight), wide(&bias), stride).unwrap();
            let direct = Conv2d::new(weight, bias, stride).unwrap();
            let normed = exact_norm.forward(&wide(&x)).unwrap().silu().unwrap();
            let upsampled = wide(&x).upsample_nearest2d(2 * height, 2 * width).unwrap();
            for (input, exact_input, read) in [
                (Input::Map(&x), Input::Map(&wide(&x)), wide(&x)),
                (Input::NormSilu(&x, &norm), Input::NormSilu(&wide(&x), &exact_norm), normed),
                (Input::Upsampled(&x), Input::Upsampled(&wide(&x)), upsampled),
            ] {
                let expected = exact.forward(&read).unwrap();
                let sum = random(expected.dims());
                let summed = (&expected + wide(&sum)).unwrap();
                for most in [1, 1000, UNFOLDED_VALUES] {
                    let off = |found: Tensor, expected: &Tensor| largest(&(found - expected).unwrap());
                    assert!(off(in_bands(&exact, exact_input, None, most).unwrap(), &expected) < 1e-11, "{case}");
                    let found = in_bands(&exact, exact_input, Some(&wide(&sum)), most).unwrap();
                    assert!(off(found, &summed) < 1e-11, "{case}");
                }
                let off = |found: Tensor, expected: &Tensor| largest(&(wide(&found) - expected).unwrap());
                let bound = 5e-6 * largest(&expected);
                let found = direct.forward_from(input).unwrap();
                assert_eq!(found.shape(), expected.shape(), "{case}");
                assert!(off(found, &expected) < bound, "{case}");
                let found = direct.add_to(sum, input).unwrap();
                assert!(off(found, &summed) < bound, "{case}");
            }
            let misfit = random(&[batch, 4, height + 1, 2 * width]);
            assert!(direct.add_to(misfit, Input::Map(&x)).is_err(), "{case}");
        }
    }
}
