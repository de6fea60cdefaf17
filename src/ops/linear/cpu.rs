//! Projections in f32 in the host's memory.
use super::{LayerPart, Linear, Window};
use crate::autograd::Destination;
use crate::kernels::matrix::{Product, Start, Threads, View, Windows};
use crate::kernels::memory::{Values, with_values_mut};
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
use candle_core::{DType, Device, Result, Shape, Tensor};

fn product<'a>(shape: (usize, usize, usize), a: View<'a>, b: View<'a>, scale: f32) -> Product<'a> {
    Product { scale, threads: Threads::All, ..Product::new(shape, a, b) }
}

/// The rows of a window of `data` `[batch, tokens, width]` from its first on.
fn rows<'a>(data: &'a [f32], window: Window, width: usize) -> View<'a> {
    View::rows(&data[window.start * width..], width)
}

/// `W + scale·B·A`, `[outer, inner]`.
fn merged(part: &LayerPart, weight: &[f32], down: &[f32], up: &[f32]) -> Vec<f32> {
    let (outer, inner) = (part.outer(), part.inner());
    let rank = up.len() / outer;
    let mut merged = weight.to_vec();
    let added = product((outer, rank, inner), View::rows(up, rank), View::rows(down, inner), part.scale as f32);
    Product { start: Start::Output, ..added }.into(&mut merged, inner);
    merged
}

impl Linear {
    /// Where the rows of each batch entry begin in a window of rows of `a` values, and in one of rows of `out` values.
    fn windows(&self, (a, a_width): (Window, usize), (out, out_width): (Window, usize)) -> Windows {
        let (count, rows) = self.blocks(a, out);
        Windows { count, rows, a: a.all * a_width, out: out.all * out_width }
    }

    /// Whether a wide enough adapter, or few enough values, make `W + scale·B·A` fewer operations than `x·Aᵀ` and what follows.
    fn is_worth_merging(&self, part: &LayerPart) -> bool {
        part.inner() * part.outer() < self.batch * part.from.tokens * (part.inner() + part.outer())
    }

    /// Adds `scale·leftᵀ·right` to `out` `[rank, width]`: left `[batch·tokens, rank]`, and right the rows of a window that are
    /// `width` wide.
    fn add_transposed_product(
        &self,
        left: &[f32],
        (right, window): (View, Window),
        (out, width): (&mut [f32], usize),
        scale: f32,
    ) {
        let rank = out.len() / width;
        let (blocks, rows) = self.blocks(window, window);
        for block in 0..blocks {
            let left = View::rows(&left[block * rows * rank..], rank).transposed();
            let part = product((rank, rows, width), left, right.skip_rows(block * window.all), scale);
            Product { start: Start::Output, ..part }.into(out, width);
        }
    }
}

impl Cpu for Linear {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let length = self.shape.iter().product();
        let mut y: Vec<f32> = Vec::with_capacity(length);
        for part in &self.parts {
            let (outer, inner) = (part.outer(), part.inner());
            let weight = part.weight(&inputs[part.input])?;
            let (x, weight) = (Values::of(&inputs[part.input])?, Values::of(&weight)?);
            let bias = part.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)?.contiguous()).transpose()?;
            let bias = bias.as_ref().map(Values::of).transpose()?;
            let start = bias.as_ref().map_or(Start::Zero, |bias| Start::Row(bias));
            let windows = self.windows((part.from, inner), (part.to, outer));
            let x = rows(&x, part.from, inner);
            let out = &mut y.spare_capacity_mut()[part.to.start * outer..length];
            let mut project = |weight: &[f32]| {
                let weight = View::rows(weight, inner).transposed();
                Product { start, ..product((windows.rows, inner, outer), x, weight, 1.0) }.fill(windows, out, outer);
            };
            if !part.is_adapted {
                project(&weight);
                continue;
            }
            let (down, up) = (Values::of(&inputs[part.input + 1])?, Values::of(&inputs[part.input + 2])?);
            if self.is_worth_merging(part) {
                project(&merged(part, &weight, &down, &up));
                continue;
            }
            project(&weight);
            let reduced = reduce(self, part, x, &down);
            let rank = down.len() / inner;
            let (reduced, up) = (View::rows(&reduced, rank), View::rows(&up, rank).transposed());
            let added = product((windows.rows, rank, outer), reduced, up, part.scale as f32);
            let windows = self.windows((part.alone(), rank), (part.to, outer));
            // SAFETY: this part's rows were just written.
            unsafe { Product { start: Start::Output, ..added }.add(windows, out, outer) };
        }
        // SAFETY: the parts' windows are all tokens of every batch entry.
        unsafe { y.set_len(length) };
        Ok((Tensor::from_vec(y, &self.shape[..], &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let gradient = Values::of(&gradient)?;
        for part in &self.parts {
            let (outer, inner) = (part.outer(), part.inner());
            let weight = part.weight.in_type(DType::F32)?;
            let weight = Values::of(&weight)?;
            let gradient = rows(&gradient, part.to, outer);
            let windows = self.windows((part.to, outer), (part.from, inner));
            let through = |weight: &[f32], gradients: &mut Gradients| {
                let dx = product((windows.rows, outer, inner), gradient, View::rows(weight, inner), 1.0);
                add_windows(gradients, dx, windows, part, &saved.shapes[part.input])
            };
            let Some([x, down, up]) = part.adapted(saved)? else {
                through(&weight, gradients)?;
                continue;
            };
            let (x, down, up) = (Values::of(x)?, Values::of(down)?, Values::of(up)?);
            let rank = down.len() / inner;
            // The gradient of x·Aᵀ.
            let alone = self.windows((part.to, outer), (part.alone(), rank));
            let reduced = product((alone.rows, outer, rank), gradient, View::rows(&up, rank), part.scale as f32);
            let reduced = reduced.windows(alone);
            if gradients.needs(part.input) && self.is_worth_merging(part) {
                through(&merged(part, &weight, &down, &up), gradients)?;
            } else {
                through(&weight, gradients)?;
                let windows = self.windows((part.alone(), rank), (part.from, inner));
                let shape = (windows.rows, rank, inner);
                let added = product(shape, View::rows(&reduced, rank), View::rows(&down, inner), 1.0);
                add_windows(gradients, added, windows, part, &saved.shapes[part.input])?;
            }
            let x = rows(&x, part.from, inner);
            add_part(gradients, part.input + 1, (rank, inner), |d_down| {
                d_down.fill(0.0);
                self.add_transposed_product(&reduced, (x, part.from), (d_down, inner), 1.0);
            })?;
            add_part(gradients, part.input + 2, (outer, rank), |out| {
                // The transposed product reads the gradient where it lies.
                let low = reduce(self, part, x, &down);
                let mut d_up = vec![0f32; rank * outer];
                self.add_transposed_product(&low, (gradient, part.to), (&mut d_up, outer), part.scale as f32);
                for (o, row) in out.chunks_exact_mut(rank).enumerate() {
                    row.iter_mut().enumerate().for_each(|(r, value)| *value = d_up[r * outer + o]);
                }
            })?;
        }
        Ok(())
    }
}

/// `x·Aᵀ`, `[batch·tokens, rank]`.
fn reduce(op: &Linear, part: &LayerPart, x: View, down: &[f32]) -> Vec<f32> {
    let inner = part.inner();
    let rank = down.len() / inner;
    let windows = op.windows((part.from, inner), (part.alone(), rank));
    product((windows.rows, inner, rank), x, View::rows(down, inner).transposed(), 1.0).windows(windows)
}

/// Adds a product to the gradient of a part's x, of this shape: to the part's window of it.
fn add_windows(
    gradients: &mut Gradients,
    product: Product,
    windows: Windows,
    part: &LayerPart,
    shape: &Shape,
) -> Result<()> {
    let (first, inner) = (part.from.start * part.inner(), part.inner());
    gradients.accumulate(part.input, |destination| match destination {
        Destination::AddTo(memory) => {
            with_values_mut(memory, |sum| {
                Product { start: Start::Output, ..product }.into_windows(windows, &mut sum[first..], inner)
            })?;
            Ok(None)
        }
        _ if part.from.is_whole() => Tensor::from_vec(product.windows(windows), shape, &Device::Cpu).map(Some),
        _ => {
            let mut out = vec![0f32; shape.elem_count()];
            product.into_windows(windows, &mut out[first..], inner);
            Tensor::from_vec(out, shape, &Device::Cpu).map(Some)
        }
    })
}

/// Adds a part of an adapter's gradient, of which `write` writes every value.
fn add_part(
    gradients: &mut Gradients,
    input: usize,
    shape: (usize, usize),
    write: impl FnOnce(&mut [f32]) + Send,
) -> Result<()> {
    gradients.accumulate(input, |destination| {
        if let Destination::Overwrite(memory) = destination {
            return with_values_mut(memory, write).map(|()| None);
        }
        let mut part = vec![0f32; shape.0 * shape.1];
        write(&mut part);
        destination.take(Tensor::from_vec(part, shape, &Device::Cpu)?)
    })
}
