//! Open-vocabulary segmentation by a block's attention.
//!
//! An image is noised to a low level and passed through the model with class names as prompt. A class's map is the
//! attention of image tokens to the tokens of its name; each pixel gets the class with the greatest map.
mod class_maps;
mod data_set;
mod folder;
mod options;
mod prompts;
mod referring;
mod scores;
mod unsupervised;

pub(super) use class_maps::on_host;
pub use class_maps::{ClassMaps, Segmenter};
pub use data_set::{Files, SegmentationDataSet};
pub use folder::{Class, LabelledFolder, LabelledImage, NO_CLASS, SegmentationMap};
pub use options::{NoiseLevel, SegmentationOptions};
pub use prompts::{Prompt, Vocabulary};
pub use referring::{ReferringScores, evaluate_referring};
pub use scores::{Accumulator, SegmentationScores};
pub use unsupervised::{UnsupervisedOptions, UnsupervisedResult, evaluate_unsupervised};

use crate::config::named_blocks;
use crate::eval::EvaluatedModel;
use crate::eval::read_ahead::read_ahead;
use crate::eval::turns::Turns;
use crate::ops::enlarged_argmax;
use crate::system::error::{Error, Result};
use rayon::prelude::*;

/// The result of one image.
pub struct ImageResult<'a> {
    /// Index of the image in the data set.
    pub index: usize,
    /// The image with its label map.
    pub image: &'a LabelledImage,
    /// The data set's classes.
    pub classes: &'a [Class],
    /// The model's prompts; none if no class is present.
    pub prompts: &'a [Prompt],
    /// The maps of the classes.
    pub maps: &'a ClassMaps,
    /// The predicted class of every pixel, at the size of the image.
    pub predicted: &'a SegmentationMap,
}

/// Segments the images of `data` and compares them with its label maps. `visit` receives the result of every image that this
/// process segments, in order; its error ends the evaluation. All processes have the same scores in the end.
///
/// Memory does not grow with the data set: a batch is computed while the next is read.
///
/// # Errors
/// The options do not suit the model (`Error::Usage`), an image or label map is malformed, a class name is too long for
/// a prompt, the attention is not finite, no pixel counts, or a process has failed.
pub fn evaluate(
    EvaluatedModel { pipeline, scheduler, turns }: EvaluatedModel,
    data: &LabelledFolder,
    options: &SegmentationOptions,
    visit: &mut dyn FnMut(&ImageResult) -> Result<()>,
) -> Result<SegmentationScores> {
    options.maps.check(&pipeline.transformer)?;
    let mut segmenter = Segmenter::new(pipeline, scheduler, options)?;
    let classes = &data.classes;
    let vocabulary = Vocabulary::new(&pipeline.text_encoders, data)?;
    let mut accumulator = Accumulator::new(classes.len());
    each_batch(data, options, turns, |first, images| {
        let numbered: Vec<_> = (first..).zip(images.iter().map(|image| &image.image)).collect();
        let prompts: Vec<_> = images.iter().map(|image| vocabulary.prompts_of(image, options.protocol)).collect();
        let maps = segmenter.class_maps(&numbered, &prompts)?;
        for (index, ((image, prompts), maps)) in (first..).zip(images.iter().zip(&prompts).zip(&maps)) {
            let predicted = maps.predict_for(image, &options.maps.layers)?;
            accumulator.add(&image.truth, &predicted);
            visit(&ImageResult { index, image, classes, prompts, maps, predicted: &predicted })?;
        }
        Ok(())
    })?;
    accumulator.merged(turns.processes)?.scores(classes)
}

/// Calls `visit` with each batch of `data`, of which several processes take turns, and the index of its first image; the next
/// batch is read meanwhile.
///
/// # Errors
/// An image or label map is malformed; those of `visit`.
pub(super) fn each_batch(
    data: &LabelledFolder,
    options: &SegmentationOptions,
    turns: &Turns,
    mut visit: impl FnMut(usize, &[LabelledImage]) -> Result<()>,
) -> Result<()> {
    let count = options.count(data);
    let batch = options.batch.max(1);
    let (rank, size) = (turns.processes.rank(), turns.processes.size());
    let batches = (0..count).step_by(batch).skip(rank).step_by(size).map(|first| {
        let images = (first..count.min(first + batch)).into_par_iter().map(|index| data.read(index));
        images.collect::<Vec<_>>()
    });
    // One batch waits while another is computed.
    read_ahead(batches, 0, |batches| {
        turns.each(count.div_ceil(batch), |number| match batches.recv() {
            Ok(images) => visit(number * batch, &images.into_iter().collect::<Result<Vec<_>>>()?),
            Err(_) => Ok(()),
        })
    })
}

/// # Errors
/// A value of the attention of the blocks `layers` to `image` is not finite.
fn check_finite(values: &[f32], layers: &[usize], image: &LabelledImage) -> Result<()> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => {
            let blocks = named_blocks(layers);
            Err(Error::Failed(format!("the attention of {blocks} to {} is not finite", image.key)))
        }
    }
}

impl ClassMaps {
    /// Predicts the class of each pixel of `image`.
    ///
    /// # Errors
    /// The maps, of the blocks `layers`, are not finite.
    pub fn predict_for(&self, image: &LabelledImage, layers: &[usize]) -> Result<SegmentationMap> {
        check_finite(&self.values, layers, image)?;
        Ok(self.predict(image.truth.width, image.truth.height))
    }

    /// At each pixel, the class whose bilinearly enlarged map is greatest, the first of equals; [`NO_CLASS`] if there
    /// are no maps.
    pub fn predict(&self, width: usize, height: usize) -> SegmentationMap {
        let classes = match self.classes.is_empty() {
            true => vec![NO_CLASS; width * height],
            false => {
                let winners = enlarged_argmax(&self.values, self.grid, (height, width));
                winners.into_iter().map(|winner| self.classes[usize::from(winner)]).collect()
            }
        };
        SegmentationMap { width, height, classes }
    }
}
