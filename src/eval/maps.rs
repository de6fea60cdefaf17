//! How attention becomes token maps: blocks, heads, softmax, score head, scaling.
use super::score_head::TrainedScoreHead;
use crate::autograd::Variable;
use crate::config::{AttentionForm, MapHeads, MapNormalize};
use crate::model::families::sd3::{Embedded, MmDit, Probe, image_to_text_logits, mean};
use crate::system::error::{Error, Result};
use candle_core::{Result as TensorResult, Tensor};

/// Added to a map's range before dividing by it, as in the released code.
const EPSILON: f64 = 1e-6;

/// Settings for turning the attention of image tokens to CLIP tokens into maps.
///
/// The steps in order: attention of each block, reduction over heads, score head, mean over blocks, scaling of each
/// token's map, mean over the tokens of a name, scaling of each name's map.
#[derive(Clone, Debug)]
pub struct MapSettings {
    /// Blocks to average over, counted from 0, ascending.
    pub layers: Vec<usize>,
    /// Which heads a map is made of.
    pub heads: MapHeads,
    /// Whether a map holds scores or probabilities.
    pub attention: AttentionForm,
    /// Whether and when maps are scaled to [0, 1].
    pub normalize: MapNormalize,
    /// The score head that is applied to maps, where there is one.
    pub score_head: Option<TrainedScoreHead>,
}

impl MapSettings {
    /// The published protocol for these blocks: softmax over all keys, mean over heads, no scaling.
    pub fn of_layers(layers: &[usize]) -> Self {
        let mut layers = layers.to_vec();
        layers.sort_unstable();
        layers.dedup();
        Self {
            layers,
            heads: MapHeads::Mean,
            attention: AttentionForm::Softmax,
            normalize: MapNormalize::None,
            score_head: None,
        }
    }

    /// # Errors
    /// `Error::Usage` if there is no block, or the model does not have one of the blocks or heads.
    pub fn check(&self, model: &MmDit) -> Result<()> {
        if self.layers.is_empty() {
            return Err(Error::Usage("no block is chosen for the maps".into()));
        }
        self.layers.iter().try_for_each(|&layer| model.check_block(layer))?;
        check_heads(self.heads, model.config.num_attention_heads)
    }

    /// Whether a block's map is the plain softmax over all keys, averaged over heads.
    pub fn is_mean_probability(&self) -> bool {
        (self.attention, self.heads) == (AttentionForm::Softmax, MapHeads::Mean) && self.score_head.is_none()
    }

    /// The maps of the CLIP tokens, f32 `[batch, image tokens, 77]`: the mean over the blocks, scaled where that is to
    /// be done before the tokens of a name are merged. The model is run up to the last of the blocks.
    pub fn of_tokens(&self, model: &MmDit, embedded: &Embedded) -> Result<Tensor> {
        let heads = model.config.num_attention_heads;
        let mut of_blocks = vec![];
        model.probe_each(embedded, &self.layers, |_, probe| {
            of_blocks.push(self.of_block(&probe, heads, embedded.grid));
            Ok(())
        })?;
        Ok(self.scaled_before(mean(of_blocks.into_iter().map(|maps| maps.map(Variable::from)))?.into_tensor())?)
    }

    /// The mean over `probes`, each of a block with `heads` heads, scaled if scaling comes before merging tokens.
    pub fn of_probes(&self, probes: &[Probe], heads: usize, grid: (usize, usize)) -> TensorResult<Tensor> {
        let of_blocks = probes.iter().map(|probe| self.of_block(probe, heads, grid).map(Variable::from));
        self.scaled_before(mean(of_blocks)?.into_tensor())
    }

    /// One block's maps `[batch, image tokens, 77]`, unscaled; the block has `heads` heads.
    pub fn of_block(&self, probe: &Probe, heads: usize, grid: (usize, usize)) -> TensorResult<Tensor> {
        let mean = |probe: &Probe, heads: usize| match self.attention {
            AttentionForm::Softmax => probe.probability(heads).map(Variable::into_tensor),
            AttentionForm::SoftmaxText => probe.text_probability(heads).map(Variable::into_tensor),
            AttentionForm::Logits => {
                image_to_text_logits(probe, heads)?.tensor().mean(1)?.transpose(1, 2)?.contiguous()
            }
        };
        let one = |head: usize| mean(&probe.one_head(head, heads)?, 1);
        let maps = match self.heads {
            MapHeads::Mean => mean(probe, heads)?,
            MapHeads::One(head) => one(head)?,
            MapHeads::Max => (1..heads).try_fold(one(0)?, |most, head| most.maximum(&one(head)?))?,
        };
        match &self.score_head {
            Some(head) => head.apply(&maps, grid),
            None => Ok(maps),
        }
    }

    /// Scales maps `[batch, image tokens, 77]` to [0, 1], if scaling comes before merging tokens.
    pub fn scaled_before(&self, maps: Tensor) -> TensorResult<Tensor> {
        if !self.normalize.before() {
            return Ok(maps);
        }
        let maps = maps.broadcast_sub(&maps.min_keepdim(1)?)?;
        maps.broadcast_div(&(maps.max_keepdim(1)? + EPSILON)?)
    }

    /// Scales a name's map to [0, 1], if scaling comes after merging tokens.
    pub fn scale_after(&self, map: &mut [f32]) {
        if !self.normalize.after() {
            return;
        }
        let least = map.iter().copied().fold(f32::INFINITY, f32::min);
        let range = map.iter().fold(f32::NEG_INFINITY, |most, value| most.max(value - least)) + EPSILON as f32;
        map.iter_mut().for_each(|value| *value = (*value - least) / range);
    }
}

/// # Errors
/// `Error::Usage` if `chosen` is a head that a block with `heads` heads lacks.
pub fn check_heads(chosen: MapHeads, heads: usize) -> Result<()> {
    match chosen {
        MapHeads::One(head) if head >= heads => {
            Err(Error::Usage(format!("head {head}: the model's blocks have {heads} heads, counted from 0")))
        }
        _ => Ok(()),
    }
}
