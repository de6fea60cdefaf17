//! Rotary positions in f32 in the host's memory, a token at a time.
use super::Rotary;
use crate::kernels::cpu::new_rows;
use crate::kernels::memory::Values;
use crate::ops::accumulate::add_rows;
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
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

    /// Turns row `r`, or with `back` the other way round: what becomes of it is `put` where `out` has its place.
    #[inline(always)]
    fn turn(&self, r: usize, row: &[f32], back: bool, out: &mut [f32], put: impl Fn(&mut f32, f32)) {
        let token = r % self.tokens;
        if token >= self.turned {
            return out.iter_mut().zip(row).for_each(|(out, value)| put(out, *value));
        }
        let place = token * self.pairs;
        let (cosines, sines) = (&self.cosines[place..][..self.pairs], &self.sines[place..][..self.pairs]);
        for head in (0..row.len()).step_by(2 * self.pairs) {
            for pair in 0..self.pairs {
                let (at, cosine, sine) =
                    (head + 2 * pair, cosines[pair], if back { -sines[pair] } else { sines[pair] });
                put(&mut out[at], row[at] * cosine - row[at + 1] * sine);
                put(&mut out[at + 1], row[at + 1] * cosine + row[at] * sine);
            }
        }
    }
}

impl Cpu for Rotary {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let (_, tokens, width) = inputs[0].dims3()?;
        let (x, angles) = (Values::of(&inputs[0])?, &Angles::of(self, tokens)?);
        let y = new_rows!(x.len(), width, |r, out| {
            angles.turn(r, &x[r * width..][..width], false, out, |out, value| *out = value);
        });
        Ok((Tensor::from_vec(y, inputs[0].shape(), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, _: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (_, tokens, width) = gradient.dims3()?;
        let (dy, angles) = (Values::of(&gradient)?, &Angles::of(self, tokens)?);
        add_rows!(gradients, 0, gradient.shape(), width, |r, dx| {
            angles.turn(r, &dy[r * width..][..width], true, dx, |dx, value| *dx += value);
        })
    }
}
