//! Expert block analysis (paper, section 3): segmentation by each block's attention, attention between image and text,
//! and norms of value vectors.
use super::EvaluatedModel;
use super::maps::check_heads;
use super::segmentation::{
    Accumulator, ClassMaps, LabelledFolder, SegmentationOptions, SegmentationScores, Segmenter, Vocabulary, each_batch,
    on_host,
};
use crate::distributed::{Collective, gather_values};
use crate::model::families::JointInputs;
use crate::ops::attention_probability;
use crate::system::error::{Error, Result};
use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Measurements of one block, over all images and prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockAnalysis {
    /// Index of the block, from 0.
    pub block: usize,
    /// Open-vocabulary segmentation by this block's attention, from 0 to 1.
    pub miou: f64,
    /// Share of labelled pixels that are predicted right.
    pub pixel_accuracy: f64,
    /// Fraction of the image tokens' attention that goes to text, mean over heads.
    pub image_to_text: f64,
    /// Fraction of the text tokens' attention that goes to the image. Absent for the last block, which computes no text
    /// queries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_to_image: Option<f64>,
    /// Mean L2 norm of the image tokens' value vectors, heads concatenated.
    pub image_value_norm: f64,
    /// Mean L2 norm of the text tokens' value vectors, heads concatenated.
    pub text_value_norm: f64,
    /// Mean absolute difference, of 255, between images drawn with and without blurring this block's image→text
    /// attention; absent if none were drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blurred_difference: Option<f64>,
}

/// Measurements of all blocks of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Analysis {
    /// One entry a block, ascending.
    pub blocks: Vec<BlockAnalysis>,
    /// The block with the highest mIoU.
    pub expert: usize,
    /// The expert's mIoU minus the median of all blocks', from 0 to 1.
    pub lead_over_median: f64,
    /// The expert's mIoU minus that of the second best block.
    pub lead_over_next: f64,
    /// Fraction of attention that text would get from image tokens if attention were uniform.
    pub uniform_image_to_text: f64,
    /// Fraction of attention that the image would get from text tokens if attention were uniform.
    pub uniform_text_to_image: f64,
    /// How many images were measured.
    pub images: u64,
}

/// Sums over samples for one block.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct BlockSums {
    samples: f64,
    image_to_text: f64,
    text_to_image: Option<f64>,
    image_value_norm: f64,
    text_value_norm: f64,
}

/// Evaluates all blocks in one pass over the images of `data`, with their class names as prompts. All processes have the same
/// numbers in the end.
///
/// `options.maps.layers` is ignored. `progress` receives the number of images done.
///
/// # Errors
/// Those of [`evaluate`](super::segmentation::evaluate); the model has a single block.
pub fn analyse(
    EvaluatedModel { pipeline, scheduler, turns }: EvaluatedModel,
    data: &LabelledFolder,
    options: &SegmentationOptions,
    mut progress: impl FnMut(usize, &str),
) -> Result<Analysis> {
    let count = pipeline.transformer.config.num_layers();
    let settings = &options.maps;
    check_heads(settings.heads, pipeline.transformer.config.num_attention_heads)?;
    let mut segmenter = Segmenter::new(pipeline, scheduler, options)?;
    let vocabulary = Vocabulary::new(&pipeline.text_encoders, data)?;
    let mut accumulators = vec![Accumulator::new(data.classes.len()); count];
    // Of every batch by its own, with the index of its first image and the block: summed up in that order, whoever has them.
    let mut parts: Vec<(usize, usize, BlockSums)> = vec![];
    // Of image and text, with multiplicity.
    let mut tokens = (0, 0);
    each_batch(data, options, turns, |first, images| {
        let numbered: Vec<_> = (first..).zip(images.iter().map(|image| &image.image)).collect();
        let prompts: Vec<_> = images.iter().map(|image| vocabulary.prompts_of(image, options.protocol)).collect();
        let mut maps = vec![vec![ClassMaps::empty(segmenter.grid()); images.len()]; count];
        segmenter.each_batch(&numbered, &prompts, |pairs, embedded| {
            let streams = &embedded.streams;
            tokens = (streams.image.dims3()?.1, streams.text.dims3()?.1 - 1 + streams.last_text_count);
            pipeline.transformer.inspect_each(embedded, |layer, inputs| {
                let (probability, part) = BlockSums::of(inputs)?;
                parts.push((first, layer, part));
                let of_tokens = match settings.is_mean_probability() {
                    true => probability,
                    false => settings.of_block(&inputs.probe()?, inputs.heads, embedded.grid)?,
                };
                for ((image, prompt), of_tokens) in pairs.iter().zip(on_host(&settings.scaled_before(of_tokens)?)?) {
                    maps[layer][*image].add(prompt, &of_tokens, settings);
                }
                Ok(())
            })
        })?;
        for (layer, (maps, accumulator)) in maps.iter().zip(&mut accumulators).enumerate() {
            for (image, maps) in images.iter().zip(maps) {
                accumulator.add(&image.truth, &maps.predict_for(image, &[layer])?);
            }
        }
        if let Some(last) = images.last() {
            progress(first + images.len(), &last.key);
        }
        Ok(())
    })?;
    let scores = accumulators.into_iter().map(|of_block| of_block.merged(turns.processes)?.scores(&data.classes));
    let scores = scores.collect::<Result<Vec<_>>>()?;
    let (tokens, sums) = summed(tokens, parts, count, turns.processes)?;
    let images = scores.first().map_or(0, |scores| scores.images);
    let blocks: Vec<BlockAnalysis> =
        (0..).zip(sums).zip(&scores).map(|((block, sums), scores)| sums.finish(block, scores)).collect();
    let mut order: Vec<&BlockAnalysis> = blocks.iter().collect();
    order.sort_by(|a, b| b.miou.total_cmp(&a.miou));
    let [expert, next, ..] = order[..] else {
        return Err(Error::Failed("a model of one block has no expert among its blocks".into()));
    };
    let median = (order[(count - 1) / 2].miou + order[count / 2].miou) / 2.0;
    let (image, text) = (tokens.0 as f64, tokens.1 as f64);
    Ok(Analysis {
        expert: expert.block,
        lead_over_median: expert.miou - median,
        lead_over_next: expert.miou - next.miou,
        uniform_image_to_text: text / (image + text),
        uniform_text_to_image: image / (image + text),
        images,
        blocks,
    })
}

/// What all processes have found of the batches, summed up for each of the `count` blocks in the order of the batches, and the
/// numbers of tokens.
fn summed(
    tokens: (usize, usize),
    parts: Vec<(usize, usize, BlockSums)>,
    count: usize,
    processes: &dyn Collective,
) -> Result<((usize, usize), Vec<BlockSums>)> {
    let all = gather_values(processes, (tokens, parts), "what processes have found")?;
    let tokens = all.iter().map(|(tokens, _)| *tokens).max().unwrap_or(tokens);
    let mut parts: Vec<(usize, usize, BlockSums)> = all.into_iter().flat_map(|(_, parts)| parts).collect();
    // Stable: the parts of a batch stay in their order.
    parts.sort_by_key(|(first, ..)| *first);
    let mut sums = vec![BlockSums::default(); count];
    parts.into_iter().for_each(|(_, layer, part)| sums[layer].add(&part));
    Ok((tokens, sums))
}

impl BlockSums {
    /// Adds those of another batch.
    fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.image_to_text += other.image_to_text;
        if let Some(mass) = other.text_to_image {
            self.text_to_image = Some(self.text_to_image.unwrap_or(0.0) + mass);
        }
        self.image_value_norm += other.image_value_norm;
        self.text_value_norm += other.text_value_norm;
    }

    /// Of a batch; with the attention of image tokens to word tokens, `[batch, image tokens, words]`.
    fn of(inputs: &JointInputs) -> Result<(Tensor, Self)> {
        let &JointInputs { ref queries, ref keys, ref values, image_tokens: image, heads, last_key_count, words } =
            inputs;
        let (batch, all, _) = keys.dims3()?;
        let probability = |window: Range<usize>, range| {
            let queries = queries.window(1, window)?;
            Ok::<_, Error>(attention_probability(&queries, keys, heads, range, last_key_count)?.into_tensor())
        };
        let to_text = probability(0..image, image..all)?;
        let text_to_image = match queries.dims3()?.1 == all {
            true => Some(weighed(&probability(image..all, 0..image)?.sum(D::Minus1)?, last_key_count)?),
            false => None,
        };
        let norms = values.tensor().to_dtype(DType::F32)?.sqr()?.sum(D::Minus1)?.sqrt()?;
        let sums = Self {
            samples: batch as f64,
            image_to_text: total(&to_text)? / image as f64,
            text_to_image,
            image_value_norm: total(&norms.narrow(1, 0, image)?)? / image as f64,
            text_value_norm: weighed(&norms.narrow(1, image, all - image)?, last_key_count)?,
        };
        Ok((to_text.narrow(2, 0, words)?.contiguous()?, sums))
    }

    fn finish(self, block: usize, scores: &SegmentationScores) -> BlockAnalysis {
        let mean = |sum: f64| sum / self.samples;
        BlockAnalysis {
            block,
            miou: scores.miou,
            pixel_accuracy: scores.pixel_accuracy,
            image_to_text: mean(self.image_to_text),
            text_to_image: self.text_to_image.map(mean),
            image_value_norm: mean(self.image_value_norm),
            text_value_norm: mean(self.text_value_norm),
            blurred_difference: None,
        }
    }
}

fn total(values: &Tensor) -> Result<f64> {
    Ok(values.to_dtype(DType::F64)?.sum_all()?.to_scalar()?)
}

/// Mean over text tokens, summed over samples, of `values` `[batch, text tokens]`; the last token has multiplicity
/// `last_count`.
fn weighed(values: &Tensor, last_count: usize) -> Result<f64> {
    let tokens = values.dim(1)?;
    let last = total(&values.narrow(1, tokens - 1, 1)?)?;
    Ok((total(values)? + last * (last_count - 1) as f64) / (tokens - 1 + last_count) as f64)
}
