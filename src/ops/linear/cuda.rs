//! Projections on a GPU: products by cuBLAS, which read x's rows and write the output's where they lie, and by cuBLASLt where
//! it takes the bias along.
use super::{Linear, Window};
use crate::kernels::cuda::add::sum_entries;
use crate::kernels::cuda::epilogue::Epilogue;
use crate::kernels::cuda::product::{Matrix, Product};
use crate::kernels::cuda::{output, zero};
use crate::ops::accumulate::accumulate;
use crate::ops::backend::{Cuda, Forward, Gradients, Saved};
use crate::ops::pointwise::cuda::fill_rows;
use candle_core::{DType, Result, Tensor, bail};

/// The rows of a window of `[batch, tokens, width]`.
fn rows(tensor: &Tensor, window: Window) -> Result<Matrix<'_>> {
    Matrix::rows(tensor, window.start, window.all)
}

impl Linear {
    /// `scale·a·b` of the rows of a window of a tensor, to be written to another window.
    fn product<'a>(
        &self,
        (a, window, to): (&'a Tensor, Window, Window),
        b: Matrix<'a>,
        (inner, columns): (usize, usize),
        scale: f64,
    ) -> Result<Product<'a>> {
        let (entries, rows_of_entry) = self.blocks(window, to);
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
        let (entries, inner) = self.blocks(a_window, b_window);
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

impl Cuda for Linear {
    /// Leaves `scale·x·downᵀ` of every part with an adapter, `[batch·tokens, rank]`.
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let y = output(&self.shape[..], inputs[0].dtype(), &inputs[0])?;
        let mut all_reduced = vec![];
        for part in &self.parts {
            let (x, outer, inner) = (&inputs[part.input], part.outer(), part.inner());
            let (weight, to) = (part.weight(x)?, rows(&y, part.to)?);
            let transposed = Matrix::of(&weight)?.transposed();
            let product = self.product((x, part.from, part.to), transposed, (inner, outer), 1.0)?;
            if let Some(bias) = &part.bias {
                let bias = bias.to_dtype(x.dtype())?.contiguous()?;
                if !product.write_with(to, Epilogue::Bias(&bias))? {
                    fill_rows(&y, &bias, (self.batch, part.to.start..part.to.start + part.to.tokens, part.to.all))?;
                    product.write(to, true)?;
                }
            } else {
                product.write(to, false)?;
            }
            if part.is_adapted {
                let (down, up) = (&inputs[part.input + 1], &inputs[part.input + 2]);
                let (rank, alone) = (down.dims()[0], part.alone());
                let reduced = output((self.batch * part.from.tokens, rank), x.dtype(), x)?;
                let down = Matrix::of(down)?.transposed();
                self.product((x, part.from, alone), down, (inner, rank), part.scale)?
                    .write(rows(&reduced, alone)?, false)?;
                let up = Matrix::of(up)?.transposed();
                self.product((&reduced, alone, part.to), up, (rank, outer), 1.0)?.write(to, true)?;
                all_reduced.push(reduced);
            }
        }
        Ok(Some((y, all_reduced)))
    }

    /// The gradient of x is in its type, those of the adapters' matrices in f32.
    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let gradient = &gradient;
        let mut all_reduced = saved.kept.iter();
        for part in &self.parts {
            let (outer, inner, alone) = (part.outer(), part.inner(), part.alone());
            let adapted = part.adapted(saved)?;
            // The gradient of `x·downᵀ`.
            let d_reduced = adapted.map(|[_, down, up]| {
                let rank = down.dims()[0];
                let d_reduced = output((self.batch * part.to.tokens, rank), gradient.dtype(), gradient)?;
                self.product((gradient, part.to, alone), Matrix::of(up)?, (outer, rank), part.scale)?
                    .write(rows(&d_reduced, alone)?, false)?;
                Result::Ok(d_reduced)
            });
            let d_reduced = d_reduced.transpose()?;
            let add = |dx: &Tensor, adds: bool| {
                if !adds && !part.from.is_whole() {
                    zero(dx)?;
                }
                let (weight, dx) = (part.weight(gradient)?, rows(dx, part.from)?);
                self.product((gradient, part.to, part.from), Matrix::of(&weight)?, (outer, inner), 1.0)?
                    .write(dx, adds)?;
                let (Some(d_reduced), Some([_, down, _])) = (&d_reduced, adapted) else { return Ok(()) };
                let rank = down.dims()[0];
                self.product((d_reduced, alone, part.from), Matrix::of(down)?, (rank, inner), 1.0)?.write(dx, true)
            };
            let like_x = (&saved.shapes[part.input], gradient.dtype(), gradient);
            accumulate(gradients, part.input, like_x, add)?;
            let (Some(d_reduced), Some([x, ..])) = (&d_reduced, adapted) else { continue };
            let Some(reduced) = all_reduced.next() else { bail!("linear: the forward pass left too little") };
            let rank = d_reduced.dims()[1];
            accumulate(gradients, part.input + 1, ((rank, inner), DType::F32, gradient), |out, adds| {
                self.transposed_product((d_reduced, alone), (x, part.from), out, adds)
            })?;
            accumulate(gradients, part.input + 2, ((outer, rank), DType::F32, gradient), |out, adds| {
                self.transposed_product((gradient, part.to), (reduced, alone), out, adds)
            })?;
        }
        Ok(())
    }
}
