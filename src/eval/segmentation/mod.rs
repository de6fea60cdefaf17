//! Open-vocabulary segmentation: how well a block's attention finds the things that words name.
//!
//! An image is noised a little, and the model looks at it with the names of classes as prompt. Where the block's image
//! positions look at the tokens of a name is that class's map; at every pixel the class of the greatest map wins.
mod class_maps;
mod folder;
mod prompts;
mod scores;

pub use class_maps::{ClassMaps, Segmenter};
pub use folder::{Class, LabelledFolder, LabelledImage, NO_CLASS, SegmentationMap};
pub use prompts::{Prompt, Vocabulary};
pub use scores::{Accumulator, SegmentationScores};

use crate::config::SegmentationProtocol;
use crate::error::{Error, Result};
use crate::eval::usual_batch;
use crate::model::pipeline::Pipeline;
use crate::ops::enlarged_argmax;
use crate::sample::scheduler::Scheduler;
use candle_core::Tensor;
use rayon::prelude::*;
use std::borrow::Cow;
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
    /// The block whose attention segments, counted from 0.
    pub layer: usize,
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
            layer,
            size,
            protocol: SegmentationProtocol::Present,
            noise_level: NoiseLevel::Step { steps: 28, timestep: -8 },
            seed: 0,
            noise: None,
            batch: usual_batch(size),
            limit: None,
        }
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
    let blocks = pipeline.transformer.blocks.len();
    if options.layer >= blocks {
        return Err(Error::Usage(format!("block {}: the model has {blocks}, counted from 0", options.layer)));
    }
    let mut segmenter = Segmenter::new(pipeline, scheduler, options)?;
    let classes = data.classes();
    let vocabulary = Vocabulary::new(&pipeline.text_encoders, classes, data.classes_file())?;
    let all = vocabulary.all();
    let mut accumulator = Accumulator::new(classes.len());
    let count = options.limit.map_or(data.len(), |limit| limit.min(data.len()));
    let batch = options.batch.max(1);
    std::thread::scope(|scope| {
        // Without a queue: one batch waits while one is computed.
        let (sender, receiver) = sync_channel(0);
        scope.spawn(move || {
            for first in (0..count).step_by(batch) {
                let images = (first..count.min(first + batch)).into_par_iter().map(|index| data.read(index));
                if sender.send(images.collect::<Vec<_>>()).is_err() {
                    break;
                }
            }
        });
        let mut next = 0;
        for images in receiver {
            let images = images.into_iter().collect::<Result<Vec<_>>>()?;
            let prompts = images.iter().map(|image| match options.protocol {
                SegmentationProtocol::Present => Cow::Owned(vocabulary.prompts(&image.truth.present())),
                SegmentationProtocol::All => Cow::Borrowed(all.as_slice()),
            });
            let prompts: Vec<Cow<[Prompt]>> = prompts.collect();
            let numbered: Vec<_> = (next..).zip(images.iter().map(|image| &image.image)).collect();
            let maps = segmenter.class_maps(&numbered, &prompts, &[options.layer])?.concat();
            for ((image, prompts), maps) in images.iter().zip(&prompts).zip(&maps) {
                if !maps.values.iter().all(|value| value.is_finite()) {
                    let problem = format!("the attention of block {} to {} is not finite", options.layer, image.key);
                    return Err(Error::Failed(problem));
                }
                let predicted = maps.predict(image.truth.width, image.truth.height);
                accumulator.add(&image.truth, &predicted);
                visit(&ImageResult { index: next, image, classes, prompts, maps, predicted: &predicted })?;
                next += 1;
            }
        }
        Ok(())
    })?;
    let names = classes.iter().map(|class| class.name.as_str());
    accumulator.scores(names).ok_or_else(|| Error::Failed("no pixel of any label map counts: all are ignored".into()))
}

impl ClassMaps {
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
