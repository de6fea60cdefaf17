//! Convolution in f32 on the CPU.
//!
//! Each tile of output rows is unfolded and multiplied on one thread, tiles running in parallel: memory stays bounded, and
//! the result does not depend on the number of threads.
use super::im2col::{Im2col, Scratch};
use crate::kernels::matrix::{Memory, Product, Start, View};
use crate::kernels::memory::{Values, with_values_mut};
use crate::ops::group_norm::Affine;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Bytes of an unfolded tile. Each tile reads all weights, so tiles must be large; 4 MiB was as fast as 8 and up to 1.5
/// times as fast as 1 (SD3's autoencoder on two cores), and 3 to 7 times as fast as candle's convolution.
const TILE_BYTES: usize = 1 << 22;

/// Batches of so many images are one task an image.
const MANY: usize = 8;

/// Writes the output of a convolution over `y`, or adds it, contiguous as `x` is; before SiLU a norm is applied to what is read.
pub fn write(im2col: &Im2col, x: &Tensor, norm: Option<&Affine>, y: &Tensor, adds: bool) -> Result<()> {
    let conv = im2col.conv;
    let (batch, output, height, width) = y.dims4()?;
    let (x, weight, bias) = (Values::of(x)?, Values::of(&conv.weight)?, Values::of(&conv.bias)?);
    let norm = norm.map(|norm| Result::Ok((Values::of(&norm.scale)?, Values::of(&norm.offset)?))).transpose()?;
    let norm = norm.as_ref().map(|(scale, offset)| -> (&[f32], &[f32]) { (scale, offset) });
    let [x, weight, bias]: [&[f32]; 3] = [&x, &weight, &bias];
    with_values_mut(y, |y| {
        let (plane, depth) = (height * width, im2col.depth());
        // Whatever the machine at least four tiles an image, so that a small one still runs on some threads; of many
        // images each is one task already.
        let tiles = if batch < MANY { 4 } else { 1 };
        let tile_rows = (TILE_BYTES / (4 * depth * width)).clamp(1, height.div_ceil(tiles));
        let tiles_per_image = height.div_ceil(tile_rows);
        let (channels, (map_height, map_width)) = (conv.channels, im2col.map);
        let is_direct = im2col.is_identity() && norm.is_none();
        assert_eq!((y.len(), x.len()), (batch * output * plane, batch * channels * map_height * map_width));
        let y = Memory(y.as_mut_ptr());
        (0..batch * tiles_per_image).into_par_iter().for_each_init(Scratch::default, |scratch, tile| {
            let (image, tile) = (tile / tiles_per_image, tile % tiles_per_image);
            let rows = tile * tile_rows..((tile + 1) * tile_rows).min(height);
            let pixels = rows.len() * width;
            let source = &x[image * channels * map_height * map_width..][..channels * map_height * map_width];
            let (matrix, line) = if is_direct {
                (&source[rows.start * width..], map_height * map_width)
            } else {
                let of_image = image * channels..(image + 1) * channels;
                let norm = norm.map(|(scale, offset)| (&scale[of_image.clone()], &offset[of_image]));
                im2col.unfold(source, norm, (rows.clone(), width), scratch);
                (&scratch.unfolded[..], pixels)
            };
            let first = image * output * plane + rows.start * width;
            // SAFETY: a tile's task alone writes its rows of its image: for each output channel `pixels` elements
            // from `first + channel * plane`, which lie within `y` as `rows` lie within the output. `weight` is
            // `[output, depth]` in rows; `matrix` has `depth` lines of `pixels`, `line` apart, the last of which
            // ends within the image's `source` or is the last of `unfolded`.
            unsafe {
                let destination = y.from(first);
                let of_channel =
                    |channel: usize| std::slice::from_raw_parts_mut(destination.add(channel * plane), pixels);
                for (channel, &bias) in bias.iter().enumerate() {
                    match adds {
                        true => of_channel(channel).iter_mut().for_each(|value| *value += bias),
                        false => of_channel(channel).fill(bias),
                    }
                }
                let (weight, matrix) = (View::rows(weight, depth), View::rows(matrix, line));
                let product = Product::new((output, depth, pixels), weight, matrix);
                Product { start: Start::Output, ..product }.write_by_gemm(destination, plane);
                if conv.relu {
                    for channel in 0..output {
                        // Not `max`, which would turn NaN into 0.
                        let relu = |value: &mut f32| *value = if *value < 0.0 { 0.0 } else { *value };
                        of_channel(channel).iter_mut().for_each(relu);
                    }
                }
            }
        });
    })
}
