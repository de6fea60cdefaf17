//! Rotary positions in f32 in the host's memory, a token at a time.
use super::Rotary;
use crate::autograd::Gradients;
use crate::kernels::cpu::new_rows;
use crate::kernels::memory::Values;
use crate::ops::accumulate::add_rows;
use crate::ops::backend::{Cpu, Forward, Saved};
use candle_core::{Device, Result, Tensor};

/// The tables, by the rows of `[batch, tokens, width]`.
struct Angles<'a> {
    cosines: Values<'a>,
    sines: Values<'a>,
    pairs: usize,
    turned: usize,
    tokens: usize,
}

impl<'a> Angles<'a> {
    fn of(rotary: &'a Rotary, tokens: usize) -> Result<Self> {
        let (turned, pairs) = rotary.table.cosines.dims2()?;
        let (cosines, sines) = (Values::of(&rotary.table.cosines)?, Values::of(&rotary.table.sines)?);
        Ok(Self { cosines, sines, pairs, turned, tokens })
    }

    /// Cosines and sines of row `r`; none where its token stays.
    #[inline(always)]
    fn row(&self, r: usize) -> Option<(&[f32], &[f32])> {
        let token = r % self.tokens;
        let place = token * self.pairs;
        (token < self.turned).then(|| (&self.cosines[place..][..self.pairs], &self.sines[place..][..self.pairs]))
    }
}

impl Cpu for Rotary {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let (_, tokens, width) = inputs[0].dims3()?;
        let (x, angles) = (Values::of(&inputs[0])?, &Angles::of(self, tokens)?);
        let y = new_rows!(x.len(), width, |r, out| {
            let row = &x[r * width..][..width];
            match angles.row(r) {
                None => out.copy_from_slice(row),
                Some((cosines, sines)) => {
                    for head in (0..width).step_by(2 * angles.pairs) {
                        for pair in 0..angles.pairs {
                            let (at, cosine, sine) = (head + 2 * pair, cosines[pair], sines[pair]);
                            out[at] = row[at] * cosine - row[at + 1] * sine;
                            out[at + 1] = row[at + 1] * cosine + row[at] * sine;
                        }
                    }
                }
            }
        });
        Ok((Tensor::from_vec(y, inputs[0].shape(), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, _: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (_, tokens, width) = gradient.dims3()?;
        let (dy, angles) = (Values::of(&gradient)?, &Angles::of(self, tokens)?);
        add_rows!(gradients, 0, gradient.shape(), width, |r, dx| {
            let row = &dy[r * width..][..width];
            match angles.row(r) {
                None => (0..width).for_each(|i| dx[i] += row[i]),
                Some((cosines, sines)) => {
                    for head in (0..width).step_by(2 * angles.pairs) {
                        for pair in 0..angles.pairs {
                            let (at, cosine, sine) = (head + 2 * pair, cosines[pair], sines[pair]);
                            dx[at] += row[at] * cosine + row[at + 1] * sine;
                            dx[at + 1] += row[at + 1] * cosine - row[at] * sine;
                        }
                    }
                }
            }
        })
    }
}
