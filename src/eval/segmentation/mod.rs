//! Open-vocabulary segmentation: how well a block's attention finds the things that words name.
//!
//! An image is noised a little, and the model looks at it with the names of classes as prompt. Where the block's image
//! positions look at the tokens of a name is that class's map; at every pixel the class of the greatest map wins.
mod class_maps;
mod data_set;
mod folder;
mod prompts;
mod referring;
mod scores;
mod unsupervised;

pub(super) use class_maps::on_host;
pub use class_maps::{ClassMaps, Segmenter};
pub use data_set::{DataSet, Files};
pub use folder::{Class, LabelledFolder, LabelledImage, NO_CLASS, SegmentationMap};
pub use prompts::{Prompt, Vocabulary};
pub use referring::{ReferringScores, evaluate_referring};
pub use scores::{Accumulator, SegmentationScores};
pub use unsupervised::{UnsupervisedOptions, UnsupervisedResult, evaluate_unsupervised};

use crate::config::{EvalConfig, SegmentationProtocol, named_blocks};
use crate::eval::maps::MapSettings;
use crate::eval::usual_batch;
use crate::model::pipeline::Pipeline;
use crate::ops::enlarged_argmax;
use crate::sample::scheduler::Scheduler;
use crate::system::error::{Error, Result};
use crate::system::process::refused;
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::mpsc::sync_channel;

/// How much noise the image is under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NoiseLevel {
    /// A time step of a sampling schedule of so many steps; a negative one counts from the end, −1 being the last.
    Step { steps: usize, timestep: isize },
    /// Share of noise, from 0 to 1.
    Sigma(f64),
}

/// How to segment.
#[derive(Clone, Debug)]
pub struct SegmentationOptions {
    /// What a token's map is made of.
    pub maps: MapSettings,
    /// Side in pixels of the square that images are resized to.
    pub size: usize,
    pub protocol: SegmentationProtocol,
    pub noise_level: NoiseLevel,
    /// Seed of the noise, which depends on it and on the image's index.
    pub seed: u64,
    /// One noise for every image instead, `[1, channels, height, width]`.
    pub noise: Option<Tensor>,
    /// Images, and prompts, that are computed together.
    pub batch: usize,
    /// The number of images after which to stop.
    pub limit: Option<usize>,
}

impl SegmentationOptions {
    /// The published protocol, with the attention of block `layer` and images of `size`² pixels.
    pub fn new(layer: usize, size: usize) -> Self {
        Self {
            maps: MapSettings::of_layers(&[layer]),
            size,
            protocol: SegmentationProtocol::Present,
            noise_level: NoiseLevel::Step { steps: 28, timestep: -8 },
            seed: 0,
            noise: None,
            batch: usual_batch(size),
            limit: None,
        }
    }

    /// As a run's `[eval]` says, for the first `limit` images.
    pub fn of(eval: &EvalConfig, limit: Option<usize>) -> Self {
        let usual = Self::new(0, eval.size);
        let maps = MapSettings {
            heads: eval.heads,
            attention: eval.attention,
            normalize: eval.normalize,
            ..MapSettings::of_layers(&eval.layers)
        };
        let batch = eval.batch.unwrap_or(usual.batch);
        Self { maps, protocol: eval.protocol, seed: eval.seed, batch, limit, ..usual }
    }

    /// How many images of `data` are looked at.
    pub fn count(&self, data: &LabelledFolder) -> usize {
        self.limit.map_or(data.len(), |limit| limit.min(data.len()))
    }
}

/// What was found in one image.
pub struct ImageResult<'a> {
    /// Place of the image in the data set.
    pub index: usize,
    pub image: &'a LabelledImage,
    /// The data set's classes.
    pub classes: &'a [Class],
    /// What the model was told; none where no class is present.
    pub prompts: &'a [Prompt],
    pub maps: &'a ClassMaps,
    pub predicted: &'a SegmentationMap,
}

/// Segments the images of `data` and compares with its label maps; `visit` sees every image in turn, and ends the
/// evaluation with an error of its own.
///
/// Memory does not grow with the data set: a batch is computed while the next is read.
///
/// # Errors
/// The options do not suit the model (`Error::Usage`), an image or label map is not as it should be, a class's name does
/// not fit into a prompt, the attention is not finite, or no pixel counts.
pub fn evaluate(
    pipeline: &Pipeline,
    scheduler: &Scheduler,
    data: &LabelledFolder,
    options: &SegmentationOptions,
    visit: &mut dyn FnMut(&ImageResult) -> Result<()>,
) -> Result<SegmentationScores> {
    options.maps.check(&pipeline.transformer)?;
    let mut segmenter = Segmenter::new(pipeline, scheduler, options)?;
    let classes = data.classes();
    let vocabulary = Vocabulary::new(&pipeline.text_encoders, classes, data.classes_file())?;
    let mut accumulator = Accumulator::new(classes.len());
    each_batch(data, options, |first, images| {
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
    accumulator.scores(classes.iter().map(|class| class.name.as_str()))
}

/// Reads the images of `data` a batch at a time and hands them on with the number of the first; a batch is worked on
/// while the next is read.
///
/// # Errors
/// An image or label map is not as it should be; and those of `visit`.
pub(super) fn each_batch(
    data: &LabelledFolder,
    options: &SegmentationOptions,
    mut visit: impl FnMut(usize, &[LabelledImage]) -> Result<()>,
) -> Result<()> {
    let count = options.count(data);
    let batch = options.batch.max(1);
    std::thread::scope(|scope| {
        // Without a queue: one batch waits while one is computed.
        let (sender, receiver) = sync_channel(0);
        let read = move || {
            for first in (0..count).step_by(batch) {
                let images = (first..count.min(first + batch)).into_par_iter().map(|index| data.read(index));
                if sender.send(images.collect::<Vec<_>>()).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().spawn_scoped(scope, read).map_err(|e| refused("a thread that reads images", e))?;
        for (first, images) in (0..).step_by(batch).zip(receiver) {
            visit(first, &images.into_iter().collect::<Result<Vec<_>>>()?)?;
        }
        Ok(())
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
    /// The prediction for `image`.
    ///
    /// # Errors
    /// The maps, which are of the blocks `layers`, are not finite.
    pub fn predict_for(&self, image: &LabelledImage, layers: &[usize]) -> Result<SegmentationMap> {
        check_finite(&self.values, layers, image)?;
        Ok(self.predict(image.truth.width, image.truth.height))
    }

    /// At every pixel of a picture the class whose map, enlarged bilinearly, is greatest, the first of equals;
    /// [`NO_CLASS`] where there are no maps.
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
