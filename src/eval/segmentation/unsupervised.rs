//! Unsupervised segmentation by a block's attention to an empty prompt (paper, "unsupervised segmentation").
//!
//! Each of the word tokens has a map over the image; similar maps are merged, and the merged means are segments.
use super::folder::{LabelledFolder, NO_CLASS, SegmentationMap};
use super::{Accumulator, SegmentationOptions, SegmentationScores, Segmenter, check_finite, each_batch};
use crate::eval::EvaluatedModel;
use crate::loss::assign;
use crate::model::text::TextEmbedding;
use crate::ops::enlarged_argmax;
use crate::system::error::Result;

/// Settings for merging maps into segments.
#[derive(Clone, Debug)]
pub struct UnsupervisedOptions {
    /// Maps with a symmetric KL divergence below the threshold, in nats, are merged. Each threshold is evaluated.
    pub thresholds: Vec<f64>,
    /// Exponent applied to maps scaled to [0, 1].
    pub power: f64,
    /// A learnt prompt, `[1, …]`, that replaces the empty prompt.
    pub prompt: Option<TextEmbedding>,
}

/// The result of one image at one threshold.
pub struct UnsupervisedResult<'a> {
    /// Index of the image in the data set.
    pub index: usize,
    /// Name of the image within its folder.
    pub key: &'a str,
    /// Index of the threshold in the options.
    pub threshold: usize,
    /// Number of segments.
    pub segments: usize,
    /// The classes that segments were matched with; [`NO_CLASS`] for unmatched segments.
    pub predicted: &'a SegmentationMap,
}

/// Segments the images of `data`, matches each image's segments with its classes by overlap, and returns the scores at
/// each threshold, which all processes have in the end; `visit` receives what this one segments. `options.protocol` is ignored.
///
/// # Errors
/// Those of [`evaluate`](super::evaluate).
pub fn evaluate_unsupervised(
    EvaluatedModel { pipeline, scheduler, turns }: EvaluatedModel,
    data: &LabelledFolder,
    options: &SegmentationOptions,
    merging: &UnsupervisedOptions,
    visit: &mut dyn FnMut(&UnsupervisedResult) -> Result<()>,
) -> Result<Vec<SegmentationScores>> {
    options.maps.check(&pipeline.transformer)?;
    let mut segmenter = Segmenter::new(pipeline, scheduler, options)?;
    if let Some(prompt) = &merging.prompt {
        segmenter.tell(prompt.clone());
    }
    let grid = segmenter.grid();
    let mut accumulators = vec![Accumulator::new(data.classes.len()); merging.thresholds.len()];
    each_batch(data, options, turns, |first, images| {
        let numbered: Vec<_> = (first..).zip(images.iter().map(|image| &image.image)).collect();
        let maps = segmenter.token_maps(&numbered)?;
        for (index, (image, maps)) in (first..).zip(images.iter().zip(&maps)) {
            check_finite(maps, &options.maps.layers, image)?;
            let maps = Distributions::new(maps, maps.len() / (grid.0 * grid.1), merging.power);
            for (number, (threshold, accumulator)) in merging.thresholds.iter().zip(&mut accumulators).enumerate() {
                let segments = maps.merged(*threshold);
                let (width, height) = (image.truth.width, image.truth.height);
                let winners = enlarged_argmax(&segments.concat(), grid, (height, width));
                let predicted = matched(&winners, segments.len(), &image.truth, data.classes.len());
                accumulator.add(&image.truth, &predicted);
                let (key, segments) = (image.key.as_str(), segments.len());
                visit(&UnsupervisedResult { index, key, threshold: number, segments, predicted: &predicted })?;
            }
        }
        Ok(())
    })?;
    accumulators.into_iter().map(|accumulator| accumulator.merged(turns.processes)?.scores(&data.classes)).collect()
}

/// The token maps of an image as distributions over positions, and their divergences.
struct Distributions {
    maps: Vec<Vec<f32>>,
    /// Symmetric KL divergence of each pair of maps, indexed `[later][earlier]`.
    divergence: Vec<Vec<f64>>,
}

impl Distributions {
    /// From attention `[positions, tokens]`: each map is scaled to [0, 1], raised to `power`, and softmaxed over positions.
    fn new(attention: &[f32], tokens: usize, power: f64) -> Self {
        let maps: Vec<Vec<f32>> = (0..tokens)
            .map(|token| {
                let map: Vec<f32> = attention.iter().skip(token).step_by(tokens).copied().collect();
                let (least, most) =
                    map.iter().fold((f32::MAX, f32::MIN), |(least, most), v| (least.min(*v), most.max(*v)));
                // A constant map stays constant.
                let scale = if most > least { f64::from(most - least) } else { 1.0 };
                let exp: Vec<f64> = map.iter().map(|v| (f64::from(v - least) / scale).powf(power).exp()).collect();
                let sum: f64 = exp.iter().sum();
                exp.into_iter().map(|v| (v / sum) as f32).collect()
            })
            .collect();
        let logs: Vec<Vec<f64>> = maps.iter().map(|map| map.iter().map(|p| f64::from(*p).ln()).collect()).collect();
        let divergence = |a: usize, b: usize| {
            let terms = maps[a].iter().zip(&maps[b]).zip(logs[a].iter().zip(&logs[b]));
            terms.map(|((p, q), (ln_p, ln_q))| f64::from(p - q) * (ln_p - ln_q)).sum::<f64>() / 2.0
        };
        let divergence = (0..maps.len()).map(|a| (0..a).map(|b| divergence(a, b)).collect()).collect();
        Self { maps, divergence }
    }

    /// Greedy merging: the first remaining map absorbs all remaining maps within the threshold, and so on.
    fn merged(&self, threshold: f64) -> Vec<Vec<f32>> {
        let mut left: Vec<usize> = (0..self.maps.len()).collect();
        let mut segments = vec![];
        while let Some(&first) = left.first() {
            let (taken, others) =
                left.into_iter().partition::<Vec<_>, _>(|&map| map == first || self.divergence[map][first] < threshold);
            let mean =
                |position: usize| taken.iter().map(|&map| self.maps[map][position]).sum::<f32>() / taken.len() as f32;
            segments.push((0..self.maps[first].len()).map(mean).collect());
            left = others;
        }
        segments
    }
}

/// Assigns a class to each pixel's segment: the one-to-one matching with the greatest total overlap; ties are broken by
/// the greatest sum of IoUs (scipy breaks them arbitrarily). Pairs without overlap are unmatched.
fn matched(winners: &[u16], segments: usize, truth: &SegmentationMap, classes: usize) -> SegmentationMap {
    let mut overlap = vec![vec![0f64; classes]; segments];
    let (mut of_segment, mut of_class) = (vec![0f64; segments], vec![0f64; classes]);
    for (segment, class) in winners.iter().copied().map(usize::from).zip(&truth.classes) {
        if *class != NO_CLASS {
            let class = usize::from(*class);
            overlap[segment][class] += 1.0;
            of_segment[segment] += 1.0;
            of_class[class] += 1.0;
        }
    }
    let present = truth.present();
    if present.is_empty() {
        return SegmentationMap { classes: vec![NO_CLASS; winners.len()], ..*truth };
    }
    // Scaled so that no sum of IoUs outweighs one pixel of overlap.
    let pixel = 1.0 + present.len() as f64;
    let cost = |segment: usize, class: usize| {
        let shared: f64 = overlap[segment][class];
        -(pixel * shared + shared / (of_segment[segment] + of_class[class] - shared))
    };
    let costs: Vec<Vec<f64>> =
        (0..segments).map(|segment| present.iter().map(|&class| cost(segment, class.into())).collect()).collect();
    let mut class_of = vec![NO_CLASS; segments];
    for (segment, column) in assign(&costs) {
        if overlap[segment][usize::from(present[column])] > 0.0 {
            class_of[segment] = present[column];
        }
    }
    let classes = winners.iter().map(|&segment| class_of[usize::from(segment)]).collect();
    SegmentationMap { classes, ..*truth }
}
