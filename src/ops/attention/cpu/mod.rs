//! Attention in f32 in the host's memory.
mod by_head;
mod head;
mod probability;

use super::{Attention, Sizes};
use crate::kernels::memory::Values;
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
use by_head::ByHead;
use candle_core::{Device, Result, Tensor};
use head::{Head, Passed, Scratch};
use rayon::prelude::*;

/// Queries of a head that are one task.
const TASK: usize = 1024;

impl Sizes {
    /// One batch entry's and head's part of q, k and v.
    fn whole_head<'a>(&self, [q, k, v]: [&'a [f32]; 3], pair: (usize, usize)) -> Head<'a> {
        Head {
            q: self.head(q, self.queries, pair, 0),
            k: self.head(k, self.keys, pair, 0),
            v: self.head(v, self.keys, pair, 0),
            sizes: *self,
        }
    }
}

impl Cpu for Attention {
    /// Leaves the output, and the log-sum-exp of every query's scores in units of log 2, `[batch, heads, queries]`.
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let sizes = self.sizes;
        let (q, k, v) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?, Values::of(&inputs[2])?);
        let inputs: [&[f32]; 3] = [&q, &k, &v];
        let starts = (0..sizes.queries).step_by(TASK);
        let tasks: Vec<_> =
            sizes.pairs().into_iter().flat_map(|pair| starts.clone().map(move |at| (pair, at))).collect();
        let out = ByHead::new(sizes, sizes.queries);
        let lse: Vec<Vec<f32>> = tasks
            .into_par_iter()
            .map_init(Scratch::default, |scratch, (pair, start)| {
                let part = Sizes { queries: TASK.min(sizes.queries - start), ..sizes };
                let q = sizes.head(inputs[0], sizes.queries, pair, start);
                let head = Head { q, sizes: part, ..sizes.whole_head(inputs, pair) };
                // SAFETY: the rows are this task's.
                unsafe { head.forward(out.rows(pair, start), scratch) }
            })
            .collect();
        let lse = Tensor::from_vec(lse.concat(), (sizes.batch, sizes.heads, sizes.queries), &Device::Cpu)?;
        // SAFETY: the tasks are all heads and queries.
        let out = unsafe { out.into_tensor()? };
        Ok((out.clone(), vec![out, lse]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (sizes, [out, lse]) = (self.sizes, saved.kept()?);
        let (q, k, v) = (Values::of(saved.input(0)?)?, Values::of(saved.input(1)?)?, Values::of(saved.input(2)?)?);
        let (out, lse, gradient) = (Values::of(out)?, Values::of(lse)?, Values::of(&gradient)?);
        let [q, k, v, out, lse, gradient]: [&[f32]; 6] = [&q, &k, &v, &out, &lse, &gradient];
        let d_inputs = [sizes.queries, sizes.keys, sizes.keys].map(|tokens| ByHead::new(sizes, tokens));
        sizes.pairs().into_par_iter().zip(lse.par_chunks_exact(sizes.queries)).for_each_init(
            Scratch::default,
            |scratch, (pair, lse)| {
                let of = |data| sizes.head(data, sizes.queries, pair, 0);
                let passed = Passed { out: of(out), gradient: of(gradient), lse };
                let rows = d_inputs.each_ref().map(|d_input| d_input.rows(pair, 0));
                // SAFETY: the rows are this task's.
                unsafe { sizes.whole_head([q, k, v], pair).backward(passed, rows, scratch) };
            },
        );
        for (input, part) in d_inputs.into_iter().enumerate() {
            // SAFETY: the tasks are all heads.
            gradients.add(input, unsafe { part.into_tensor()? })?;
        }
        Ok(())
    }
}
