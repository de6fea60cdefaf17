//! Gradients of several micro-batches, of all processes, as those of one.
use super::gradient_buffer::GradientBuffer;
use super::gradients::LossTerms;
use super::parameters::Parameters;
use crate::distributed::{Collective, slice_length};
use crate::system::error::Result;
use candle_core::{Device, Tensor};

/// Loss terms and gradients summed over micro-batches. Each process sums one slice of the gradients, and has them all at
/// the step's end: that moves a fraction of the bytes that all gradients at all processes would, and sums in the same
/// order.
pub struct Accumulated<'a> {
    collective: &'a dyn Collective,
    terms: Vec<LossTerms>,
    /// This process's slice of the sum.
    slice: Tensor,
    /// Values of all slices, and which parameters have gradients.
    count: usize,
    present: Vec<bool>,
}

impl<'a> Accumulated<'a> {
    /// Of no micro-batch yet.
    pub fn new(parameters: &Parameters, collective: &'a dyn Collective) -> Result<Self> {
        let buffer = parameters.buffer();
        let count = buffer.dim(0)?;
        let slice = Tensor::zeros(slice_length(count, collective.size()), buffer.dtype(), buffer.device())?;
        Ok(Self { collective, terms: vec![], slice, count, present: vec![false; parameters.all.len()] })
    }

    /// Adds a micro-batch of every process, in rank order.
    pub fn add(&mut self, terms: LossTerms, gradients: &GradientBuffer) -> Result<()> {
        for slice in self.collective.exchange_slices(&gradients.values)? {
            self.slice = (&self.slice + slice)?;
        }
        let notes = Tensor::new(notes(&terms, &gradients.present), &Device::Cpu)?;
        for notes in self.collective.gather(&notes)? {
            let (terms, present) = read_notes(&notes.to_vec1()?);
            self.terms.push(terms);
            self.present.iter_mut().zip(present).for_each(|(all, one)| *all |= one);
        }
        Ok(())
    }

    /// Means over the micro-batches; a term that some of them lack counts as zero there.
    pub fn mean(self) -> Result<(LossTerms, GradientBuffer)> {
        let micro_batches = self.terms.len();
        let mean = |get: fn(&LossTerms) -> Option<f32>| {
            let found: Vec<f32> = self.terms.iter().filter_map(get).collect();
            (!found.is_empty()).then(|| found.iter().sum::<f32>() / micro_batches as f32)
        };
        let terms = LossTerms {
            total: mean(|t| Some(t.total)).unwrap_or(0.0),
            flow: mean(|t| t.flow),
            focal: mean(|t| t.focal),
            dice: mean(|t| t.dice),
            align: mean(|t| t.align),
        };
        let values = Tensor::cat(&self.collective.gather(&self.slice)?, 0)?.narrow(0, 0, self.count)?;
        let mut gradients = GradientBuffer { values, present: self.present };
        gradients.scale(1.0 / micro_batches as f64)?;
        Ok((terms, gradients))
    }
}

/// Loss terms, each after a 1 where there is one and a 0 where not, then which gradients are present.
fn notes(terms: &LossTerms, present: &[bool]) -> Vec<f32> {
    let LossTerms { total, flow, focal, dice, align } = *terms;
    let terms = [Some(total), flow, focal, dice, align];
    let terms = terms.into_iter().flat_map(|term| [f32::from(u8::from(term.is_some())), term.unwrap_or(0.0)]);
    terms.chain(present.iter().map(|present| f32::from(u8::from(*present)))).collect()
}

/// What [`notes`] wrote.
fn read_notes(notes: &[f32]) -> (LossTerms, Vec<bool>) {
    let (terms, present) = notes.split_at(10);
    let term = |place: usize| (terms[2 * place] != 0.0).then_some(terms[2 * place + 1]);
    let total = term(0).unwrap_or(0.0);
    let terms = LossTerms { total, flow: term(1), focal: term(2), dice: term(3), align: term(4) };
    (terms, present.iter().map(|present| *present != 0.0).collect())
}
