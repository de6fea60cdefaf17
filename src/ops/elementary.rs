//! Differentiable operations of a line each, made of candle's: what the loss does with a few maps, and reshapes.
use crate::autograd::{Destination, Variable, record};
use crate::kernels::cpu::for_each_row;
use crate::kernels::memory::{Values, is_on_cpu, with_values_mut};
use candle_core::{D, DType, Result, Shape, Tensor};
use std::ops::Range;

impl Variable {
    /// `output`, which is a function of these values; `backward` makes of its gradient that of the values.
    fn record(&self, output: Tensor, backward: impl FnOnce(Tensor) -> Result<Tensor> + Send + 'static) -> Self {
        record(output, &[self], |gradient, gradients| gradients.add(0, backward(gradient)?))
    }

    /// The values in another shape.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let before = self.tensor().shape().clone();
        Ok(self.record(self.tensor().reshape(shape.into())?, |gradient| gradient.reshape(before)))
    }

    /// Dimensions in another order, as [`Tensor::permute`].
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, from)| back[*from] = to);
        let output = self.tensor().permute(order)?.contiguous()?;
        Ok(self.record(output, move |gradient| gradient.permute(&back[..])?.contiguous()))
    }

    /// Some places of one dimension.
    pub fn window(&self, dim: usize, window: Range<usize>) -> Result<Self> {
        let all = self.tensor().dim(dim)?;
        let output = self.tensor().narrow(dim, window.start, window.len())?.contiguous()?;
        Ok(record(output, &[self], move |gradient, gradients| {
            gradients.accumulate(0, |destination| match destination {
                // Nothing is made of the places outside: several windows of one tensor are added where they belong.
                Destination::AddTo(sum) if is_on_cpu(sum) && is_on_cpu(&gradient) => {
                    add_window(sum, &gradient.contiguous()?, dim, window.start).map(|()| None)
                }
                _ => destination.take(gradient.pad_with_zeros(dim, window.start, all - window.end)?),
            })
        }))
    }

    /// The values once for each of `count` batch entries, in a dimension before the others.
    pub fn broadcast_left(&self, count: usize) -> Result<Self> {
        let output = self.tensor().broadcast_left(count)?.contiguous()?;
        Ok(self.record(output, |gradient| gradient.sum(0)))
    }

    /// The values in another type.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let before = self.tensor().dtype();
        if before == dtype {
            return Ok(self.clone());
        }
        Ok(self.record(self.tensor().to_dtype(dtype)?, move |gradient| gradient.to_dtype(before)))
    }

    /// The values times a number.
    pub fn scale(&self, factor: f64) -> Result<Self> {
        Ok(self.record((self.tensor() * factor)?, move |gradient| gradient * factor))
    }

    /// Values times constants of their shape.
    pub fn mul_constant(&self, factors: &Tensor) -> Result<Self> {
        let (output, factors) = ((self.tensor() * factors)?, factors.clone());
        Ok(self.record(output, |gradient| gradient * factors))
    }

    /// `ln(x + floor)`.
    pub fn log_above(&self, floor: f64) -> Result<Self> {
        let above = (self.tensor() + floor)?;
        Ok(self.record(above.log()?, |gradient| gradient / above))
    }

    /// The sum over one dimension, which stays with length 1.
    pub fn sum_keepdim(&self, dim: usize) -> Result<Self> {
        let shape = self.tensor().shape().clone();
        Ok(self.record(self.tensor().sum_keepdim(dim)?, |gradient| gradient.broadcast_as(shape)?.contiguous()))
    }

    /// The mean over one dimension, which stays with length 1.
    pub fn mean_keepdim(&self, dim: usize) -> Result<Self> {
        let count = self.tensor().dim(dim)?;
        self.sum_keepdim(dim)?.scale(1.0 / count as f64)
    }

    /// The largest along one dimension, which stays with length 1; all of several that are largest have its gradient.
    pub fn max_keepdim(&self, dim: usize) -> Result<Self> {
        let output = self.tensor().max_keepdim(dim)?;
        let is_largest = self.tensor().broadcast_eq(&output)?.to_dtype(output.dtype())?;
        Ok(self.record(output, move |gradient| is_largest.broadcast_mul(&gradient)))
    }

    /// The softmax over one dimension.
    pub fn softmax(&self, dim: usize) -> Result<Self> {
        let output = candle_nn::ops::softmax(self.tensor(), dim)?;
        let saved = output.clone();
        Ok(self.record(output, move |gradient| {
            let weighted = (&gradient * &saved)?;
            let sum = weighted.sum_keepdim(dim)?;
            weighted - saved.broadcast_mul(&sum)?
        }))
    }

    /// Rows of the first dimension, by their numbers `[rows]` in u32.
    pub fn index_select(&self, numbers: &Tensor) -> Result<Self> {
        let (source, numbers) = (self.tensor().contiguous()?, numbers.clone());
        let output = source.index_select(&numbers, 0)?;
        let (shape, dtype) = (source.shape().clone(), source.dtype());
        Ok(self.record(output, move |gradient| {
            Tensor::zeros(shape, dtype, gradient.device())?.index_add(&numbers, &gradient.contiguous()?, 0)
        }))
    }

    /// `[…, a, b]` times `[…, b, c]`.
    pub fn matmul(&self, right: &Self) -> Result<Self> {
        let (a, b) = (self.tensor().contiguous()?, right.tensor().contiguous()?);
        let output = a.matmul(&b)?;
        Ok(record(output, &[self, right], move |gradient, gradients| {
            gradients.add_with(0, || gradient.matmul(&b.transpose(D::Minus2, D::Minus1)?))?;
            gradients.add_with(1, || a.transpose(D::Minus2, D::Minus1)?.matmul(&gradient))
        }))
    }

    /// `[a, b]` times the transpose of `[c, b]`.
    pub fn matmul_transposed(&self, right: &Self) -> Result<Self> {
        let (a, b) = (self.tensor().contiguous()?, right.tensor().contiguous()?);
        let output = a.matmul(&b.t()?)?;
        Ok(record(output, &[self, right], move |gradient, gradients| {
            gradients.add_with(0, || gradient.matmul(&b))?;
            gradients.add_with(1, || gradient.t()?.matmul(&a))
        }))
    }
}

/// Adds `part` to the places of dimension `dim` of `sum` from `start` on; both f32 in the host's memory.
fn add_window(sum: &Tensor, part: &Tensor, dim: usize, start: usize) -> Result<()> {
    let (all, length) = (sum.dim(dim)?, part.dim(dim)?);
    let inner: usize = sum.dims()[dim + 1..].iter().product();
    let part = Values::of(part)?;
    let add = |sum: &mut [f32], part: &[f32]| sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    with_values_mut(sum, |sum| {
        if inner == 1 {
            for_each_row!(sum, all, |r, row| add(&mut row[start..start + length], &part[r * length..][..length]));
        } else {
            for_each_row!(sum, inner, |r, row| {
                let place = r % all;
                if (start..start + length).contains(&place) {
                    add(row, &part[(r / all * length + place - start) * inner..][..inner]);
                }
            });
        }
    })
}

/// The sum of two variables of one shape.
pub fn add(a: &Variable, b: &Variable) -> Result<Variable> {
    let output = (a.tensor() + b.tensor())?;
    Ok(record(output, &[a, b], |gradient, gradients| {
        if !gradients.needs(0) {
            return gradients.add(1, gradient);
        }
        gradients.add_with(1, || gradient.copy())?;
        gradients.add(0, gradient)
    }))
}

/// Variables joined along one dimension.
pub fn cat(parts: &[Variable], dim: usize) -> Result<Variable> {
    if let [only] = parts {
        return Ok(only.clone());
    }
    let output = Tensor::cat(&parts.iter().map(Variable::tensor).collect::<Vec<_>>(), dim)?;
    let lengths = parts.iter().map(|part| part.tensor().dim(dim)).collect::<Result<Vec<_>>>()?;
    Ok(record(output, &parts.iter().collect::<Vec<_>>(), move |gradient, gradients| {
        let mut first = 0;
        for (input, length) in lengths.into_iter().enumerate() {
            gradients.add(input, gradient.narrow(dim, first, length)?.force_contiguous()?)?;
            first += length;
        }
        Ok(())
    }))
}

/// The mean of the squares of `x − target`: a scalar in f32.
pub fn mean_squared_error(x: &Variable, target: &Tensor) -> Result<Variable> {
    let difference = (x.tensor() - target)?;
    let count = difference.elem_count() as f64;
    Ok(x.record(difference.sqr()?.mean_all()?, move |gradient| difference.broadcast_mul(&(gradient * (2.0 / count))?)))
}
