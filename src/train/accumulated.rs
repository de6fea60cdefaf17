//! Gradients of several micro-batches as those of one.
use super::gradients::{Gradients, LossTerms};
use crate::system::error::Result;
use candle_core::Tensor;

/// Loss terms and gradients summed over micro-batches.
pub struct Accumulated {
    terms: Vec<LossTerms>,
    gradients: Vec<Option<Tensor>>,
}

impl Accumulated {
    pub fn new(parameters: usize) -> Self {
        Self { terms: vec![], gradients: vec![None; parameters] }
    }

    /// Waits for the micro-batch.
    pub fn add(&mut self, micro: Gradients) -> Result<()> {
        self.terms.push(micro.terms()?);
        for (sum, gradient) in self.gradients.iter_mut().zip(micro.by_parameter) {
            *sum = match (sum.take(), gradient) {
                (Some(sum), Some(gradient)) => Some((sum + gradient)?),
                (sum, gradient) => sum.or(gradient),
            };
        }
        Ok(())
    }

    /// Means over the micro-batches; a term that some of them lack counts as zero there.
    pub fn mean(self, micro_batches: usize) -> Result<(LossTerms, Vec<Option<Tensor>>)> {
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
        if micro_batches == 1 {
            return Ok((terms, self.gradients));
        }
        let scale = 1.0 / micro_batches as f64;
        let gradients = self.gradients.into_iter();
        let gradients = gradients.map(|g| g.map(|g| g * scale).transpose()).collect::<candle_core::Result<_>>()?;
        Ok((terms, gradients))
    }
}
