//! The mask-alignment loss: the published sigmoid form, and the softmax form of method.md.
use super::maps::{MapIndex, SampleMaps};
use super::matching::match_maps;
use super::{MaskTarget, SampleTargets};
use crate::config::{Alignment, FocalProbability, HeadMaps, LossConfig};
use crate::model::mmdit::Probe;
use crate::ops::{self, NO_CLASS};
use candle_core::{Result, Tensor};

/// The loss terms of a batch, unweighted, each a scalar with gradient.
pub enum AlignmentLoss {
    /// No image has a mask that anything could be aligned with.
    None,
    Sigmoid {
        focal: Tensor,
        dice: Tensor,
    },
    Softmax {
        align: Tensor,
    },
}

/// Aligns the expert's attention of a batch with its masks.
///
/// `grid` is rows and columns of image tokens, `score_head` the parameters in the order of [`ops::PARAMETERS`].
pub fn alignment_loss(
    probe: &Probe,
    heads: usize,
    grid: (usize, usize),
    targets: &[SampleTargets],
    score_head: Option<&[Tensor]>,
    config: &LossConfig,
) -> Result<AlignmentLoss> {
    match config.alignment {
        Alignment::Sigmoid => sigmoid_loss(probe, heads, grid, targets, score_head, config),
        Alignment::Softmax => softmax_loss(probe, heads, grid, targets, config),
    }
}

/// Maps with gradient for some masks of one image: mask `i` is compared with the mean over `groups[i]` of `maps`.
struct Chosen {
    maps: Vec<MapIndex>,
    groups: Vec<Vec<usize>>,
    masks: Vec<MaskTarget>,
}

/// Pairs of masks with the CLIP tokens of their class's name; masks whose name did not fit are left out.
fn paired_tokens(targets: &SampleTargets) -> Vec<(&MaskTarget, Vec<usize>)> {
    let span = |mask: &MaskTarget| targets.spans.get(mask.class?)?.clone();
    targets.masks.iter().filter_map(|mask| Some((mask, span(mask)?.collect()))).collect()
}

fn choose(
    maps: &SampleMaps,
    targets: &SampleTargets,
    score_head: Option<&[Tensor]>,
    config: &LossConfig,
) -> Result<Chosen> {
    let mut chosen = Chosen { maps: vec![], groups: vec![], masks: vec![] };
    if !targets.spans.is_empty() {
        for (mask, tokens) in paired_tokens(targets) {
            let first = chosen.maps.len();
            chosen.maps.extend(tokens.iter().flat_map(|token| maps.of_token(*token, config.heads)));
            chosen.groups.push((first..chosen.maps.len()).collect());
            chosen.masks.push(mask.clone());
        }
        return Ok(chosen);
    }
    for (map, mask) in matched(maps, config.heads, targets, score_head, config)? {
        chosen.groups.push(vec![chosen.maps.len()]);
        chosen.maps.push(SampleMaps::index(map, config.heads));
        chosen.masks.push(targets.masks[mask].clone());
    }
    Ok(chosen)
}

/// Hungarian matching of all maps of an image to its masks; nothing of it is recorded.
fn matched(
    maps: &SampleMaps,
    kind: HeadMaps,
    targets: &SampleTargets,
    score_head: Option<&[Tensor]>,
    config: &LossConfig,
) -> Result<Vec<(usize, usize)>> {
    if targets.masks.is_empty() {
        return Ok(vec![]);
    }
    let mut all = maps.all(kind)?;
    if let Some(parameters) = score_head {
        let plain: Vec<Tensor> = parameters.iter().map(Tensor::detach).collect();
        all = ops::score_head(&all, &plain)?;
    }
    let masks: Vec<&[f32]> = targets.masks.iter().map(|mask| mask.grid.as_slice()).collect();
    match_maps(&all.flatten_from(1)?, &masks, config)
}

fn sigmoid_loss(
    probe: &Probe,
    heads: usize,
    grid: (usize, usize),
    targets: &[SampleTargets],
    score_head: Option<&[Tensor]>,
    config: &LossConfig,
) -> Result<AlignmentLoss> {
    let mut maps = vec![];
    let mut groups: Vec<Vec<usize>> = vec![];
    let mut masks = vec![];
    let mut first = 0;
    for (index, targets) in targets.iter().enumerate() {
        let sample = SampleMaps::new(probe, index, heads, grid)?;
        let chosen = choose(&sample, targets, score_head, config)?;
        if chosen.maps.is_empty() {
            continue;
        }
        groups.extend(chosen.groups.iter().map(|group| group.iter().map(|map| first + map).collect()));
        masks.extend(chosen.masks.into_iter().map(|mask| mask.pixels));
        first += chosen.maps.len();
        maps.push(sample.chosen(&chosen.maps)?);
    }
    if maps.is_empty() {
        return Ok(AlignmentLoss::None);
    }
    let mut maps = Tensor::cat(&maps, 0)?;
    if let Some(parameters) = score_head {
        maps = ops::score_head(&maps, parameters)?;
    }
    if groups.iter().any(|group| group.len() != 1) {
        maps = mean_of_groups(&maps, &groups)?;
    }
    let raw_logit = config.focal_probability == FocalProbability::Logit;
    let count = targets.iter().map(|t| t.masks.len()).sum::<usize>().max(1) as f64;
    let terms = (ops::mask_loss(&maps, masks, raw_logit)?.sum(1)? / count)?;
    Ok(AlignmentLoss::Sigmoid { focal: terms.get(0)?, dice: terms.get(1)? })
}

/// `[maps, h, w]` to `[groups, h, w]`.
fn mean_of_groups(maps: &Tensor, groups: &[Vec<usize>]) -> Result<Tensor> {
    let (count, h, w) = maps.dims3()?;
    let mut mean = vec![0f32; groups.len() * count];
    for (group, row) in groups.iter().zip(mean.chunks_exact_mut(count)) {
        for map in group {
            row[*map] += 1.0 / group.len() as f32;
        }
    }
    let mean = Tensor::from_vec(mean, (groups.len(), count), maps.device())?;
    mean.matmul(&maps.reshape((count, h * w))?)?.reshape((groups.len(), h, w))
}

fn softmax_loss(
    probe: &Probe,
    heads: usize,
    grid: (usize, usize),
    targets: &[SampleTargets],
    config: &LossConfig,
) -> Result<AlignmentLoss> {
    let mut losses = vec![];
    for (index, targets) in targets.iter().enumerate() {
        let sample = SampleMaps::new(probe, index, heads, grid)?;
        let pairs: Vec<(&MaskTarget, Vec<usize>)> = if targets.spans.is_empty() {
            matched(&sample, HeadMaps::Mean, targets, None, config)?
                .into_iter()
                .map(|(token, mask)| (&targets.masks[mask], vec![token]))
                .collect()
        } else {
            paired_tokens(targets)
        };
        let Some((labels, size)) = paint(&pairs) else { continue };
        let tokens: Vec<Vec<usize>> = pairs.iter().map(|(_, tokens)| tokens.clone()).collect();
        let weights = pairs.iter().map(|(mask, _)| 1.0 / (mask.area.max(1) as f32).sqrt()).collect();
        // The floor is below anything that a softmax in f32 gives a gradient for; it keeps the logarithm finite.
        let logarithms = (sample.class_probability(&tokens)? + 1e-30)?.log()?;
        losses.push(ops::pixel_cross_entropy(&logarithms, labels, size, weights)?);
    }
    if losses.is_empty() {
        return Ok(AlignmentLoss::None);
    }
    Ok(AlignmentLoss::Softmax { align: Tensor::cat(&losses, 0)?.mean_all()? })
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
