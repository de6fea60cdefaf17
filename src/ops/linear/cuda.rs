//! Projections on a GPU: products by cuBLAS, which read x's rows and write the output's where they lie.
use super::{Linear, Part, Saved, Window};
use crate::autograd::Gradients;
use crate::ops::kernels::cuda::add::sum_entries;
use crate::ops::kernels::cuda::product::{Matrix, Product};
use crate::ops::kernels::cuda::{accumulate, output, zero};
use crate::ops::pointwise::cuda::fill_rows;
use candle_core::{DType, Result, Shape, Tensor};

/// The rows of a window of `[batch, tokens, width]`.
fn rows(tensor: &Tensor, window: Window) -> Result<Matrix<'_>> {
    Matrix::rows(tensor, window.start, window.all)
}

/// The tokens of a part, and nothing else.
fn alone(part: &Part) -> Window {
    Window { start: 0, tokens: part.from.tokens, all: part.from.tokens }
}

impl Linear {
    /// How many entries of how many rows two windows are: one entry, where all their rows follow each other.
    fn entries(&self, a: Window, b: Window) -> (usize, usize) {
        if a.is_whole() && b.is_whole() { (1, self.batch * a.tokens) } else { (self.batch, a.tokens) }
    }

    /// `scale·a·b` of the rows of a window of a tensor, to be written to another window.
    fn product<'a>(
        &self,
        (a, window, to): (&'a Tensor, Window, Window),
        b: Matrix<'a>,
        (inner, columns): (usize, usize),
        scale: f64,
    ) -> Result<Product<'a>> {
        let (entries, rows_of_entry) = self.entries(window, to);
        Ok(Product { shape: (rows_of_entry, inner, columns), entries, a: rows(a, window)?, b, scale })
    }

    /// Writes `aᵀ·b` over `out` `[a's width, b's width]` in f32, or adds it to what is there: sums over the rows of two windows.
    fn transposed_product(
        &self,
        (a, a_window): (&Tensor, Window),
        (b, b_window): (&Tensor, Window),
        out: &Tensor,
        adds: bool,
    ) -> Result<()> {
        let (entries, inner) = self.entries(a_window, b_window);
        let (rows_of_out, columns) = out.dims2()?;
        let (a, b) = (rows(a, a_window)?.transposed(), rows(b, b_window)?);
        let product = Product { shape: (rows_of_out, inner, columns), entries, a, b, scale: 1.0 };
        if entries == 1 {
            return product.write(Matrix::of(out)?, adds);
        }
        let parts = output((entries, rows_of_out, columns), out.dtype(), out)?;
        product.write(Matrix::rows(&parts, 0, rows_of_out)?, false)?;
        sum_entries(&parts, out, adds)
    }
}

/// `inputs` are contiguous and of one type, in the operation's order. The output, and `scale·x·downᵀ` of every part with an
/// adapter, `[batch·tokens, rank]`.
pub fn forward(op: &Linear, inputs: &[Tensor]) -> Result<(Tensor, Vec<Option<Tensor>>)> {
    let y = output(&op.shape[..], inputs[0].dtype(), &inputs[0])?;
    let mut all_reduced = vec![];
    for part in &op.parts {
        let (x, outer, inner) = (&inputs[part.input], part.outer(), part.inner());
        let (weight, to) = (part.weight(x)?, rows(&y, part.to)?);
        if let Some(bias) = &part.bias {
            let bias = bias.to_dtype(x.dtype())?.contiguous()?;
            fill_rows(&y, &bias, (op.batch, part.to.start..part.to.start + part.to.tokens, part.to.all))?;
        }
        let transposed = Matrix::of(&weight)?.transposed();
        op.product((x, part.from, part.to), transposed, (inner, outer), 1.0)?.write(to, part.bias.is_some())?;
        if !part.is_adapted {
            all_reduced.push(None);
            continue;
        }
        let (down, up) = (&inputs[part.input + 1], &inputs[part.input + 2]);
        let (rank, alone) = (down.dims()[0], alone(part));
        let reduced = output((op.batch * part.from.tokens, rank), x.dtype(), x)?;
        let down = Matrix::of(down)?.transposed();
        op.product((x, part.from, alone), down, (inner, rank), part.scale)?.write(rows(&reduced, alone)?, false)?;
        let up = Matrix::of(up)?.transposed();
        op.product((&reduced, alone, part.to), up, (rank, outer), 1.0)?.write(to, true)?;
        all_reduced.push(Some(reduced));
    }
    Ok((y, all_reduced))
}

/// Adds the gradients of the inputs: that of x in its type, of the adapter's matrices in f32.
pub fn backward(op: &Linear, saved: &Saved, gradient: &Tensor, gradients: &mut Gradients) -> Result<()> {
    for (part, reduced) in op.parts.iter().zip(&saved.reduced) {
        let (outer, inner, alone) = (part.outer(), part.inner(), alone(part));
        let low_rank = part.low_rank(&saved.tensors);
        // The gradient of `x·downᵀ`.
        let d_reduced = low_rank.map(|(down, up)| {
            let rank = down.dims()[0];
            let d_reduced = output((op.batch * part.to.tokens, rank), gradient.dtype(), gradient)?;
            op.product((gradient, part.to, alone), Matrix::of(up)?, (outer, rank), part.scale)?
                .write(rows(&d_reduced, alone)?, false)?;
            Result::Ok(d_reduced)
        });
        let d_reduced = d_reduced.transpose()?;
        let add = |dx: &Tensor, adds: bool| {
            if !adds && !part.from.is_whole() {
                zero(dx)?;
            }
            let (weight, dx) = (part.weight(gradient)?, rows(dx, part.from)?);
            op.product((gradient, part.to, part.from), Matrix::of(&weight)?, (outer, inner), 1.0)?.write(dx, adds)?;
            let (Some(d_reduced), Some((down, _))) = (&d_reduced, low_rank) else { return Ok(()) };
            let down_matrix = Matrix::of(down)?;
            op.product((d_reduced, alone, part.from), down_matrix, (down.dims()[0], inner), 1.0)?.write(dx, true)
        };
        let like_x = (&saved.shapes[part.input], gradient.dtype(), gradient);
        gradients.accumulate(part.input, |slot| accumulate(slot, like_x, add))?;
        let (Some(d_reduced), Some(reduced), Some(x)) = (d_reduced, reduced, &saved.tensors[part.input]) else {
            continue;
        };
        let rank = d_reduced.dims()[1];
        gradients.accumulate(part.input + 1, |slot| {
            accumulate(slot, (&Shape::from((rank, inner)), DType::F32, gradient), |out, adds| {
                op.transposed_product((&d_reduced, alone), (x, part.from), out, adds)
            })
        })?;
        gradients.accumulate(part.input + 2, |slot| {
            accumulate(slot, (&Shape::from((outer, rank)), DType::F32, gradient), |out, adds| {
                op.transposed_product((gradient, part.to), (reduced, alone), out, adds)
            })
        })?;
    }
    Ok(())
}
