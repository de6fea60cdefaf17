//! The mask-alignment loss: the published sigmoid form, and the softmax form of method.md.
use super::maps::{MapKind, SampleMaps, means};
use super::matching::Matching;
use super::{MaskTarget, SampleTargets};
use crate::autograd::Variable;
use crate::config::{Alignment, AttentionForm, FocalProbability, HeadMaps, LossConfig};
use crate::model::families::Probe;
use crate::ops::{self, NO_CLASS};
use candle_core::Result;

/// The loss terms of a batch, unweighted, each a scalar with gradient.
pub enum AlignmentLoss {
    /// No image has a mask that anything could be aligned with.
    None,
    /// `alignment = "sigmoid"`, the published form.
    Sigmoid {
        /// Focal loss, a scalar, summed over pairs and divided by the number of masks.
        focal: Variable,
        /// Dice loss, a scalar, summed over pairs and divided by the number of masks.
        dice: Variable,
    },
    /// `alignment = "softmax"`.
    Softmax {
        /// Cross-entropy over the paired tokens, a scalar.
        align: Variable,
    },
}

/// The alignment of a batch's attention, the mean over some expert blocks, with its masks.
pub struct MaskAlignment<'a> {
    /// Attention heads of the model.
    pub heads: usize,
    /// Rows and columns of image tokens.
    pub grid: (usize, usize),
    /// One for each image.
    pub targets: &'a [SampleTargets],
    /// The parameters in the order of [`ops::PARAMETERS`].
    pub score_head: Option<&'a [Variable]>,
    /// Form and weights of the loss.
    pub config: &'a LossConfig,
}

impl MaskAlignment<'_> {
    /// Begins to match each image's maps with its masks, where classes do not say which belong together. Nothing of it
    /// is recorded. What is computed before [`Self::loss`] needs it, a GPU does while the host matches.
    pub fn begin(&self, probes: &[Probe]) -> Result<Vec<Matching>> {
        let score_head = self.score_head.filter(|_| self.config.alignment == Alignment::Sigmoid);
        let score_head: Option<Vec<Variable>> =
            score_head.map(|parameters| parameters.iter().map(Variable::detach).collect());
        let begin = |(index, targets): (usize, &SampleTargets)| {
            let has_words = targets.words.as_ref().is_none_or(|words| !words.is_empty());
            if !targets.spans.is_empty() || targets.masks.is_empty() || !has_words {
                return Ok(Matching::default());
            }
            let maps = self.maps(probes, index, self.config.attention)?;
            let (mut all, numbers) = maps.all(targets.words.as_ref())?;
            if let Some(parameters) = &score_head {
                all = ops::score_head(&all.into(), parameters, precision(probes))?.into_tensor();
            }
            let masks: Vec<&[f32]> = targets.masks.iter().map(|mask| mask.grid.as_slice()).collect();
            Matching::begin(&all.flatten_from(1)?, numbers, &masks, self.config)
        };
        self.targets.iter().enumerate().map(begin).collect()
    }

    /// The loss of the same attention with gradient, `matchings` being what [`Self::begin`] gave.
    pub fn loss(&self, probes: &[Probe], matchings: Vec<Matching>) -> Result<AlignmentLoss> {
        match self.config.alignment {
            Alignment::Sigmoid => self.sigmoid_loss(probes, matchings),
            Alignment::Softmax => self.softmax_loss(probes, matchings),
        }
    }

    fn maps(&self, probes: &[Probe], index: usize, form: AttentionForm) -> Result<SampleMaps> {
        let of_heads = match (self.config.alignment, self.config.heads) {
            // Tokens are compared there, whatever the heads.
            (Alignment::Softmax, HeadMaps::Keep) => HeadMaps::Mean,
            (_, of_heads) => of_heads,
        };
        SampleMaps::new(probes, index, MapKind { heads: self.heads, of_heads, form }, self.grid)
    }

    fn sigmoid_loss(&self, probes: &[Probe], matchings: Vec<Matching>) -> Result<AlignmentLoss> {
        // A mask is compared with the mean of a group of maps.
        let (mut maps, mut groups, mut masks) = (vec![], vec![], vec![]);
        let (mut first, mut count) = (0, 0);
        for (index, (targets, matching)) in self.targets.iter().zip(matchings).enumerate() {
            let sample = self.maps(probes, index, self.config.attention)?;
            let of_tokens = |tokens: Vec<usize>| tokens.into_iter().flat_map(|token| sample.of_token(token)).collect();
            let paired = paired_tokens(targets).into_iter().map(|(mask, tokens)| (mask, of_tokens(tokens)));
            let matched = matching.pairs()?.into_iter().map(|(map, mask)| (&targets.masks[mask], vec![map]));
            let pairs: Vec<(&MaskTarget, Vec<usize>)> = paired.chain(matched).collect();
            // Masks that were not to be paired do not count, those that found no map do.
            let is_limited = !targets.spans.is_empty() || self.config.match_max_cost.is_some();
            count += if is_limited { pairs.len() } else { targets.masks.len() };
            let chosen: Vec<usize> = pairs.iter().flat_map(|(_, maps)| maps).copied().collect();
            if chosen.is_empty() {
                continue;
            }
            for (mask, maps) in &pairs {
                groups.push((first..first + maps.len()).collect());
                first += maps.len();
                masks.push(mask.pixels.clone());
            }
            maps.push(sample.chosen(&chosen)?);
        }
        if maps.is_empty() {
            return Ok(AlignmentLoss::None);
        }
        let mut maps = ops::cat(&maps, 0)?;
        if let Some(parameters) = self.score_head {
            maps = ops::score_head(&maps, parameters, precision(probes))?;
        }
        if groups.iter().any(|group: &Vec<usize>| group.len() != 1) {
            let (all, h, w) = maps.dims3()?;
            maps = means(&maps.reshape((all, h * w))?, &groups)?.reshape((groups.len(), h, w))?;
        }
        let raw_logit = self.config.focal_probability == FocalProbability::Logit;
        let terms = ops::mask_loss(&maps, masks, raw_logit)?.sum_keepdim(1)?.scale(1.0 / count.max(1) as f64)?;
        let term = |number: usize| terms.window(0, number..number + 1)?.reshape(());
        Ok(AlignmentLoss::Sigmoid { focal: term(0)?, dice: term(1)? })
    }

    fn softmax_loss(&self, probes: &[Probe], matchings: Vec<Matching>) -> Result<AlignmentLoss> {
        let mut losses = vec![];
        for (index, (targets, matching)) in self.targets.iter().zip(matchings).enumerate() {
            let matched = matching.pairs()?.into_iter().map(|(token, mask)| (&targets.masks[mask], vec![token]));
            let pairs: Vec<(&MaskTarget, Vec<usize>)> = paired_tokens(targets).into_iter().chain(matched).collect();
            let Some((labels, size)) = paint(&pairs) else { continue };
            let tokens: Vec<Vec<usize>> = pairs.iter().map(|(_, tokens)| tokens.clone()).collect();
            let weights = pairs.iter().map(|(mask, _)| 1.0 / (mask.area.max(1) as f32).sqrt()).collect();
            // The floor is below anything that a softmax in f32 gives a gradient for; it keeps the logarithm finite.
            let maps = self.maps(probes, index, self.config.aligned_form())?;
            let logarithms = maps.of_classes(&tokens)?.log_above(1e-30)?;
            losses.push(ops::pixel_cross_entropy(&logarithms, labels, size, weights)?);
        }
        if losses.is_empty() {
            return Ok(AlignmentLoss::None);
        }
        Ok(AlignmentLoss::Softmax { align: ops::cat(&losses, 0)?.mean_keepdim(0)?.reshape(())? })
    }
}

/// How exact the score head has to be on maps of these.
fn precision(probes: &[Probe]) -> ops::Precision {
    probes.first().map_or(ops::Precision::F32, |probe| ops::Precision::of(probe.queries.tensor().dtype()))
}

/// Pairs of masks with the word tokens of their class's name; masks whose name did not fit are left out, and all where
/// masks have no classes.
fn paired_tokens(targets: &SampleTargets) -> Vec<(&MaskTarget, Vec<usize>)> {
    let span = |mask: &MaskTarget| targets.spans.get(mask.class?)?.clone();
    targets.masks.iter().filter_map(|mask| Some((mask, span(mask)?.collect()))).collect()
}

/// The label map of an image's masks; where masks overlap the smallest wins. None if no pixel has a label.
fn paint(pairs: &[(&MaskTarget, Vec<usize>)]) -> Option<(Vec<u8>, (usize, usize))> {
    let size = pairs.first()?.0.pixels.size();
    let mut labels = vec![NO_CLASS; size.0 * size.1];
    let mut order: Vec<usize> = (0..pairs.len().min(usize::from(NO_CLASS))).collect();
    order.sort_by_key(|index| std::cmp::Reverse(pairs[*index].0.area));
    let mut row = vec![0f32; size.1];
    for index in order {
        for (y, labels) in labels.chunks_exact_mut(size.1).enumerate() {
            pairs[index].0.pixels.row(y, &mut row);
            for (label, inside) in labels.iter_mut().zip(&row) {
                if *inside > 0.5 {
                    *label = index as u8;
                }
            }
        }
    }
    labels.iter().any(|label| *label != NO_CLASS).then_some((labels, size))
}
