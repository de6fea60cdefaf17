//! The attention of image positions to the text, as segmentation sees it.
use super::joint::Probe;
use crate::autograd::Variable;
use crate::ops;
use candle_core::{DType, Result, bail};

/// `q·kᵀ/√head_dim` from every image query to the word tokens, before the softmax: `[batch, heads, words, tokens]`.
///
/// Differentiable; the scores between other tokens are never formed.
pub fn image_to_text_logits(probe: &Probe, heads: usize) -> Result<Variable> {
    let (batch, tokens, width) = probe.queries.dims3()?;
    let head_dim = width / heads;
    let q = probe.queries.reshape((batch, tokens, heads, head_dim))?.permute(&[0, 2, 3, 1])?;
    let k = probe.text_keys()?.reshape((batch, probe.words, heads, head_dim))?.permute(&[0, 2, 1, 3])?;
    k.matmul(&q)?.to_dtype(DType::F32)?.scale((head_dim as f64).powf(-0.5))
}

/// [`image_to_text_logits`], the mean over several blocks.
pub fn mean_logits(probes: &[Probe], heads: usize) -> Result<Variable> {
    mean(probes.iter().map(|probe| image_to_text_logits(probe, heads)))
}

/// [`Probe::probability`], the mean over several blocks.
pub fn mean_probability(probes: &[Probe], heads: usize) -> Result<Variable> {
    mean(probes.iter().map(|probe| probe.probability(heads)))
}

/// The mean of what each of several blocks has; of one block, its bits.
pub fn mean(each: impl ExactSizeIterator<Item = Result<Variable>>) -> Result<Variable> {
    let count = each.len();
    let mut sum: Option<Variable> = None;
    for variable in each {
        sum = Some(match sum {
            None => variable?,
            Some(sum) => ops::add(&sum, &variable?)?,
        });
    }
    match sum {
        Some(sum) if count == 1 => Ok(sum),
        Some(sum) => sum.scale(1.0 / count as f64),
        None => bail!("the mean over no block"),
    }
}

impl Probe {
    /// Keys of the word tokens, `[batch, words, width]`.
    pub fn text_keys(&self) -> Result<Variable> {
        let (_, first, _) = self.queries.dims3()?;
        self.keys.window(1, first..first + self.words)
    }

    /// Softmax over all keys of the joint sequence, heads averaged, for the word tokens: `[batch, tokens, words]`, f32.
    pub fn probability(&self, heads: usize) -> Result<Variable> {
        let (_, first, _) = self.queries.dims3()?;
        let range = first..first + self.words;
        ops::attention_probability(&self.queries, &self.keys, heads, range, self.last_key_count)
    }

    /// Softmax over the word tokens alone, heads averaged: `[batch, tokens, words]`, f32.
    pub fn text_probability(&self, heads: usize) -> Result<Variable> {
        ops::attention_probability(&self.queries, &self.text_keys()?, heads, 0..self.words, 1)
    }

    /// The heads one after the other as samples of one head each: queries `[batch·heads, image tokens, head_dim]`.
    pub fn heads_apart(&self, heads: usize) -> Result<Self> {
        self.map(|of| {
            let (batch, tokens, width) = of.dims3()?;
            let by_head = of.reshape((batch, tokens, heads, width / heads))?.permute(&[0, 2, 1, 3])?;
            by_head.reshape((batch * heads, tokens, width / heads))
        })
    }

    /// One of the heads alone.
    pub fn one_head(&self, head: usize, heads: usize) -> Result<Self> {
        self.map(|of| {
            let width = of.dims3()?.2 / heads;
            of.window(2, head * width..(head + 1) * width)
        })
    }

    /// The same values, of which nothing is remembered for a backward pass.
    pub fn detached(&self) -> Self {
        Self { queries: self.queries.detach(), keys: self.keys.detach(), ..*self }
    }

    /// Queries and keys of one sample of the batch.
    pub fn sample(&self, index: usize) -> Result<Self> {
        self.map(|of| of.window(0, index..index + 1))
    }

    /// Its queries and its keys, each as `change` makes them.
    fn map(&self, change: impl Fn(&Variable) -> Result<Variable>) -> Result<Self> {
        Ok(Self { queries: change(&self.queries)?, keys: change(&self.keys)?, ..*self })
    }
}
