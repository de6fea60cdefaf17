//! Attention maps of the experts, averaged: all of them without gradient, for matching; the chosen ones with.
use crate::config::HeadMaps;
use crate::device::upload;
use crate::model::mmdit::{Probe, mean, mean_logits, mean_probability};
use crate::model::text::tokenizer::CLIP_TOKENS;
use candle_core::{DType, Result, Tensor};

/// One image's attention in the expert blocks; every map is the mean over them.
pub struct SampleMaps {
    probes: Vec<Probe>,
    heads: usize,
    grid: (usize, usize),
}

/// A map: one head's, or the mean over heads, of a CLIP token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapIndex {
    pub head: Option<usize>,
    pub token: usize,
}

impl SampleMaps {
    /// Image `index` of the batch that `probes` are of; `grid` is rows and columns of image tokens.
    pub fn new(probes: &[Probe], index: usize, heads: usize, grid: (usize, usize)) -> Result<Self> {
        let probes = probes.iter().map(|probe| probe.sample(index)).collect::<Result<_>>()?;
        Ok(Self { probes, heads, grid })
    }

    /// Every map, without gradient: `[heads·77, h, w]` (map `head·77 + token`), or `[77, h, w]` of head means.
    pub fn all(&self, kind: HeadMaps) -> Result<Tensor> {
        let probes: Vec<Probe> = self.probes.iter().map(Probe::detached).collect();
        let logits = mean_logits(&probes, self.heads)?.squeeze(0)?;
        let (rows, columns) = self.grid;
        match kind {
            HeadMaps::Keep => logits.reshape(((), rows, columns)),
            HeadMaps::Mean => logits.mean(0)?.reshape(((), rows, columns)),
        }
    }

    /// The index of map `number` of [`Self::all`].
    pub fn index(number: usize, kind: HeadMaps) -> MapIndex {
        match kind {
            HeadMaps::Keep => MapIndex { head: Some(number / CLIP_TOKENS), token: number % CLIP_TOKENS },
            HeadMaps::Mean => MapIndex { head: None, token: number },
        }
    }

    /// The maps of a token: one of every head, or their mean.
    pub fn of_token(&self, token: usize, kind: HeadMaps) -> Vec<MapIndex> {
        match kind {
            HeadMaps::Keep => (0..self.heads).map(|head| MapIndex { head: Some(head), token }).collect(),
            HeadMaps::Mean => vec![MapIndex { head: None, token }],
        }
    }

    /// The chosen maps with gradient, `[chosen, h, w]` in f32: one product of all queries with the chosen keys, each
    /// key zero outside its head.
    pub fn chosen(&self, chosen: &[MapIndex]) -> Result<Tensor> {
        mean(self.probes.iter().map(|probe| self.chosen_of(probe, chosen)))
    }

    fn chosen_of(&self, probe: &Probe, chosen: &[MapIndex]) -> Result<Tensor> {
        let (_, tokens, width) = probe.queries.dims3()?;
        let head_dim = width / self.heads;
        let scale = (head_dim as f32).powf(-0.5);
        let mut weights = vec![0f32; chosen.len() * width];
        for (index, row) in chosen.iter().zip(weights.chunks_exact_mut(width)) {
            match index.head {
                Some(head) => row[head * head_dim..][..head_dim].fill(scale),
                None => row.fill(scale / self.heads as f32),
            }
        }
        let device = probe.queries.device();
        let weights = upload(weights, (chosen.len(), width), device)?;
        let token_indices: Vec<u32> = chosen.iter().map(|index| index.token as u32).collect();
        let token_indices = upload(token_indices, chosen.len(), device)?;
        let keys = probe.text_keys()?.squeeze(0)?.to_dtype(DType::F32)?.index_select(&token_indices, 0)?;
        let queries = probe.queries.reshape((tokens, width))?.to_dtype(DType::F32)?;
        (keys * weights)?.matmul(&queries.t()?)?.reshape(((), self.grid.0, self.grid.1))
    }

    /// Attention probability of classes, `[classes, h, w]`: each the mean over its tokens.
    pub fn class_probability(&self, classes: &[Vec<usize>]) -> Result<Tensor> {
        let probability = mean_probability(&self.probes, self.heads)?.squeeze(0)?;
        let mut mean = vec![0f32; classes.len() * CLIP_TOKENS];
        for (tokens, row) in classes.iter().zip(mean.chunks_exact_mut(CLIP_TOKENS)) {
            for token in tokens {
                row[*token] += 1.0 / tokens.len() as f32;
            }
        }
        let mean = upload(mean, (classes.len(), CLIP_TOKENS), probability.device())?;
        mean.matmul(&probability.t()?)?.reshape(((), self.grid.0, self.grid.1))
    }
}
