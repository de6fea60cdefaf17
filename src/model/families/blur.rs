//! A block whose image tokens look at the text blurred: what the picture loses without it shows what the block is for,
//! and guidance away from that gives more of it.
use super::joint::JointInputs;
use crate::ops;
use candle_core::{DType, Result as TensorResult, Tensor};

/// A Gaussian blur, over the image, of one block's scores between image queries and text keys, before the softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blur {
    /// The block, counted from 0.
    pub layer: usize,
    /// Standard deviation in image tokens.
    pub sigma: f64,
}

impl JointInputs {
    /// [`attend`](Self::attend), the scores between image queries and text keys blurred over the image's `grid`.
    ///
    /// A score is linear in its query: blurred scores are those of blurred queries. So that one softmax takes image
    /// keys with the queries and text keys with the blurred ones, heads are twice as wide, and a key's other half zero.
    pub(super) fn attend_blurred(&self, grid: (usize, usize), sigma: f64) -> TensorResult<Tensor> {
        let (queries, keys) = (self.queries.tensor(), self.keys.tensor());
        let (image, (batch, all, width)) = (self.image_tokens, keys.dims3()?);
        let text = all - image;
        let side_by_side = |first: &Tensor, second: &Tensor| {
            let tokens = first.dim(1)?;
            let heads = |x: &Tensor| x.reshape((batch, tokens, self.heads, width / self.heads));
            Tensor::cat(&[heads(first)?, heads(second)?], 3)?.reshape((batch, tokens, 2 * width))
        };
        let image_queries = queries.narrow(1, 0, image)?.contiguous()?;
        let mut wide = side_by_side(&image_queries, &blur(&image_queries, grid, sigma)?)?;
        if queries.dim(1)? > image {
            let of_text = queries.narrow(1, image, text)?.contiguous()?;
            wide = Tensor::cat(&[wide, side_by_side(&of_text, &of_text)?], 1)?;
        }
        let zeros = keys.zeros_like()?;
        let zeros = |tokens: usize| zeros.narrow(1, 0, tokens);
        let keys = Tensor::cat(
            &[
                side_by_side(&keys.narrow(1, 0, image)?, &zeros(image)?)?,
                side_by_side(&zeros(text)?, &keys.narrow(1, image, text)?)?,
            ],
            1,
        )?;
        let values = side_by_side(self.values.tensor(), &zeros(image + text)?)?;
        // Attention divides by the root of a head's width, which is now twice as large.
        let wide = (wide * std::f64::consts::SQRT_2)?;
        let out = ops::attention(&wide.into(), &keys.into(), &values.into(), self.heads, self.last_key_count)?;
        let out = out.tensor();
        let tokens = out.dim(1)?;
        let heads = out.reshape((batch, tokens, self.heads, 2 * (width / self.heads)))?;
        heads.narrow(3, 0, width / self.heads)?.contiguous()?.reshape((batch, tokens, width))
    }
}

/// `[batch, rows·columns, width]` blurred over rows and columns; at the edges weights are those inside, of sum 1.
fn blur(x: &Tensor, (rows, columns): (usize, usize), sigma: f64) -> TensorResult<Tensor> {
    let (batch, _, width) = x.dims3()?;
    let matrix = |side: usize| -> TensorResult<Tensor> {
        let mut weights = Vec::with_capacity(side * side);
        for to in 0..side {
            let row: Vec<f64> =
                (0..side).map(|from| (-(to as f64 - from as f64).powi(2) / (2.0 * sigma * sigma)).exp()).collect();
            let sum: f64 = row.iter().sum();
            weights.extend(row.into_iter().map(|weight| (weight / sum) as f32));
        }
        Tensor::from_vec(weights, (side, side), x.device())
    };
    let wide = x.to_dtype(DType::F32)?.reshape((batch, rows, columns * width))?;
    let down = matrix(rows)?.broadcast_left(batch)?.contiguous()?.matmul(&wide.contiguous()?)?;
    let tall = down.reshape((batch * rows, columns, width))?;
    let across = matrix(columns)?.broadcast_left(batch * rows)?.contiguous()?.matmul(&tall)?;
    across.reshape((batch, rows * columns, width))?.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};

    fn inputs(text_queries: bool) -> (JointInputs, (usize, usize)) {
        let cpu = Device::Cpu;
        let (batch, grid, text, width) = (2, (4, 3), 5, 12);
        let image = grid.0 * grid.1;
        let mut next = 0.0f32;
        let mut values = |tokens: usize| {
            let numbers = (0..batch * tokens * width).map(|_| {
                next += 1.0;
                (next * 12.9898).sin() * 1.7
            });
            Tensor::from_vec(numbers.collect::<Vec<f32>>(), (batch, tokens, width), &cpu).expect("tensor")
        };
        let inputs = JointInputs {
            queries: values(image + if text_queries { text } else { 0 }).into(),
            keys: values(image + text).into(),
            values: values(image + text).into(),
            image_tokens: image,
            heads: 3,
            last_key_count: 4,
            words: text,
        };
        (inputs, grid)
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a - b).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>());
        difference.expect("as large")
    }

    #[test]
    fn no_blur_is_plain_attention() {
        for text_queries in [true, false] {
            let (inputs, grid) = inputs(text_queries);
            let found = inputs.attend_blurred(grid, 1e-3).expect("attention");
            assert!(difference(&found, inputs.attend().expect("attention").tensor()) < 1e-6);
        }
    }

    /// The scores written out, those of image queries and text keys blurred one map at a time.
    #[test]
    fn scores_are_blurred_before_the_softmax() -> TensorResult<()> {
        let sigma = 1.3;
        for text_queries in [true, false] {
            let (inputs, grid) = inputs(text_queries);
            let JointInputs { queries, keys, values, heads, image_tokens: image, .. } = &inputs;
            let (queries, keys, values, image) = (queries.tensor(), keys.tensor(), values.tensor(), *image);
            let (batch, _, width) = queries.dims3()?;
            let (all, d) = (keys.dim(1)?, width / heads);
            let split = |x: &Tensor| x.reshape((batch, x.dim(1)?, *heads, d))?.transpose(1, 2)?.contiguous();
            let scores = (split(queries)?.matmul(&split(keys)?.t()?.contiguous()?)? / (d as f64).sqrt())?;
            let mut scores = scores.reshape((batch * heads, queries.dim(1)?, all))?.to_vec3::<f32>()?;
            for map in &mut scores {
                for key in image..all {
                    let column: Vec<f64> = map[..image].iter().map(|row| f64::from(row[key])).collect();
                    for (place, row) in map[..image].iter_mut().enumerate() {
                        let (y, x) = (place / grid.1, place % grid.1);
                        let gauss = |a: usize, b: usize| (-(a as f64 - b as f64).powi(2) / (2.0 * sigma * sigma)).exp();
                        let weight = |other: usize| gauss(y, other / grid.1) * gauss(x, other % grid.1);
                        let total: f64 = (0..image).map(weight).sum();
                        row[key] = ((0..image).map(|other| weight(other) * column[other]).sum::<f64>() / total) as f32;
                    }
                }
                map.iter_mut().for_each(|row| row[all - 1] += 4f32.ln());
            }
            let scores = Tensor::new(scores, &Device::Cpu)?.reshape((batch, *heads, queries.dim(1)?, all))?;
            let out = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&split(values)?)?;
            let expected = out.transpose(1, 2)?.contiguous()?.reshape((batch, queries.dim(1)?, width))?;
            assert!(difference(&inputs.attend_blurred(grid, sigma)?, &expected) < 2e-6);
        }
        Ok(())
    }
}
