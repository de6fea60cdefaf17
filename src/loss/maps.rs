//! Attention maps of the experts, averaged: all of them without gradient, for matching; the chosen ones with.
use crate::autograd::Variable;
use crate::config::{AttentionForm, HeadMaps};
use crate::model::families::{Probe, image_to_text_logits, mean};
use crate::ops::device::upload;
use candle_core::{DType, Result, Tensor};
use std::ops::Range;

/// What a map is made of.
#[derive(Clone, Copy, Debug)]
pub struct MapKind {
    /// Heads of the model.
    pub heads: usize,
    /// Which of them there are maps of.
    pub of_heads: HeadMaps,
    pub form: AttentionForm,
}

/// The mean of each group of maps `[maps, positions]`: `[groups, positions]`.
pub fn means(maps: &Variable, groups: &[Vec<usize>]) -> Result<Variable> {
    let count = maps.tensor().dim(0)?;
    let mut shares = vec![0f32; groups.len() * count];
    for (group, row) in groups.iter().zip(shares.chunks_exact_mut(count)) {
        for map in group {
            row[*map] += 1.0 / group.len() as f32;
        }
    }
    Variable::constant(upload(shares, (groups.len(), count), maps.device())?).matmul(maps)
}

/// One image's attention in the expert blocks; every map is the mean over them.
///
/// With heads kept, map `head·words + token` is that of a head and a word token; else map `token`.
pub struct SampleMaps {
    probes: Vec<Probe>,
    /// Word tokens.
    words: usize,
    kind: MapKind,
    /// Rows and columns of image tokens.
    grid: (usize, usize),
}

impl SampleMaps {
    /// Image `index` of the batch that `probes` are of; `grid` is rows and columns of image tokens.
    pub fn new(probes: &[Probe], index: usize, kind: MapKind, grid: (usize, usize)) -> Result<Self> {
        let sample = |probe: &Probe| match kind.of_heads {
            HeadMaps::One(head) => probe.sample(index)?.one_head(head, kind.heads),
            _ => probe.sample(index),
        };
        let words = probes.first().map_or(0, |probe| probe.words);
        let probes = probes.iter().map(sample).collect::<Result<_>>()?;
        let kind = match kind.of_heads {
            // Of one head the mean is that head.
            HeadMaps::One(_) => MapKind { heads: 1, of_heads: HeadMaps::Mean, ..kind },
            _ => kind,
        };
        Ok(Self { probes, words, kind, grid })
    }

    /// Every map, without gradient: `[heads·words, h, w]`, or `[words, h, w]` where heads are not kept. Of some `words`
    /// alone, those with their numbers.
    pub fn all(&self, words: Option<&Range<usize>>) -> Result<(Tensor, Option<Vec<usize>>)> {
        let probes: Vec<Probe> = self.probes.iter().map(Probe::detached).collect();
        let every = self.every(&probes)?;
        let Some(words) = words else { return Ok((self.on_grid(&every)?.into_tensor(), None)) };
        let (heads, all, _) = every.dims3()?;
        let words = words.start.min(all)..words.end.min(all);
        let numbers = (0..heads).flat_map(|head| words.clone().map(move |word| head * all + word)).collect();
        Ok((self.on_grid(&every.window(1, words)?)?.into_tensor(), Some(numbers)))
    }

    /// The maps of a token: one of every head, or one alone.
    pub fn of_token(&self, token: usize) -> Vec<usize> {
        match self.kind.of_heads {
            HeadMaps::Keep => (0..self.kind.heads).map(|head| head * self.words + token).collect(),
            _ => vec![token],
        }
    }

    /// The chosen maps with gradient, `[chosen, h, w]` in f32.
    pub fn chosen(&self, chosen: &[usize]) -> Result<Variable> {
        if self.kind.form == AttentionForm::Logits {
            return self.on_grid(&mean(self.probes.iter().map(|probe| self.chosen_logits(probe, chosen)))?);
        }
        let numbers: Vec<u32> = chosen.iter().map(|number| *number as u32).collect();
        let every = self.every(&self.probes)?;
        let (groups, maps, positions) = every.dims3()?;
        let numbers = upload(numbers, chosen.len(), every.device())?;
        self.on_grid(&every.reshape((groups * maps, positions))?.index_select(&numbers)?)
    }

    /// Attention of classes with gradient, `[classes, h, w]`: each the mean over its tokens. Heads must not be kept.
    pub fn of_classes(&self, classes: &[Vec<usize>]) -> Result<Variable> {
        let every = self.every(&self.probes)?;
        let (_, maps, positions) = every.dims3()?;
        self.on_grid(&means(&every.reshape((maps, positions))?, classes)?)
    }

    /// Maps `[…, positions]` as `[maps, h, w]`.
    fn on_grid(&self, maps: &Variable) -> Result<Variable> {
        let (rows, columns) = self.grid;
        maps.reshape((maps.tensor().elem_count() / (rows * columns), rows, columns))
    }

    /// Every map, `[heads, words, positions]`, or `[1, words, positions]` where heads are not kept.
    fn every(&self, probes: &[Probe]) -> Result<Variable> {
        mean(probes.iter().map(|probe| self.every_of(probe)))
    }

    fn every_of(&self, probe: &Probe) -> Result<Variable> {
        let MapKind { heads, of_heads, form } = self.kind;
        let logits = || {
            let (_, positions, _) = probe.queries.dims3()?;
            image_to_text_logits(probe, heads)?.reshape((heads, self.words, positions))
        };
        let of_each = match form {
            AttentionForm::Logits => logits()?,
            AttentionForm::Softmax if of_heads == HeadMaps::Mean => {
                return probe.probability(heads)?.permute(&[0, 2, 1]);
            }
            AttentionForm::Softmax => probe.heads_apart(heads)?.probability(1)?.permute(&[0, 2, 1])?,
            AttentionForm::SoftmaxText => logits()?.softmax(1)?,
        };
        match of_heads {
            HeadMaps::Keep => Ok(of_each),
            HeadMaps::Max => of_each.max_keepdim(0),
            HeadMaps::Mean | HeadMaps::One(_) => of_each.mean_keepdim(0),
        }
    }

    /// The chosen logits of one block, `[chosen, positions]`: one product of all queries with the chosen keys, each key
    /// zero outside its head.
    fn chosen_logits(&self, probe: &Probe, chosen: &[usize]) -> Result<Variable> {
        let (_, positions, width) = probe.queries.dims3()?;
        let head_dim = width / self.kind.heads;
        let scale = (head_dim as f32).powf(-0.5);
        let mut weights = vec![0f32; chosen.len() * width];
        for (number, row) in chosen.iter().zip(weights.chunks_exact_mut(width)) {
            match self.kind.of_heads {
                HeadMaps::Keep => row[number / self.words * head_dim..][..head_dim].fill(scale),
                _ => row.fill(scale / self.kind.heads as f32),
            }
        }
        let device = probe.queries.device();
        let weights = upload(weights, (chosen.len(), width), device)?;
        let tokens: Vec<u32> = chosen.iter().map(|number| (number % self.words) as u32).collect();
        let tokens = upload(tokens, chosen.len(), device)?;
        let keys = probe.text_keys()?.reshape((self.words, width))?.to_dtype(DType::F32)?.index_select(&tokens)?;
        let queries = probe.queries.reshape((positions, width))?.to_dtype(DType::F32)?;
        keys.mul_constant(&weights)?.matmul_transposed(&queries)
    }
}
