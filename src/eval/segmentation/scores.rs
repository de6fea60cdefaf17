//! Intersections and unions over a data set, and the scores they make.
use super::folder::{NO_CLASS, SegmentationMap};
use crate::system::error::{Error, Result};
use serde::{Serialize, Serializer};

/// Pixels of one class over all images so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pixels {
    /// Where ground truth and prediction agree.
    intersection: u64,
    truth: u64,
    predicted: u64,
}

impl Pixels {
    fn union(&self) -> u64 {
        self.truth + self.predicted - self.intersection
    }

    /// Intersection over union; none where the class occurs neither in ground truth nor in a prediction.
    fn iou(&self) -> Option<f64> {
        (self.union() > 0).then(|| self.intersection as f64 / self.union() as f64)
    }
}

/// Counts of pixels, image by image. Memory depends on the number of classes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accumulator {
    classes: Vec<Pixels>,
    images: u64,
}

impl Accumulator {
    pub fn new(classes: usize) -> Self {
        Self { classes: vec![Pixels::default(); classes], images: 0 }
    }

    /// Adds an image. Pixels without a class in the ground truth do not count; where only the prediction has none, the
    /// ground truth's class is missed.
    ///
    /// # Panics
    /// When the two differ in size, or hold a class that this was not made for.
    pub fn add(&mut self, truth: &SegmentationMap, predicted: &SegmentationMap) {
        assert_eq!((truth.width, truth.height), (predicted.width, predicted.height));
        for (&truth, &predicted) in truth.classes.iter().zip(&predicted.classes) {
            if truth == NO_CLASS {
                continue;
            }
            self.classes[usize::from(truth)].truth += 1;
            if predicted != NO_CLASS {
                self.classes[usize::from(predicted)].predicted += 1;
            }
            if truth == predicted {
                self.classes[usize::from(truth)].intersection += 1;
            }
        }
        self.images += 1;
    }

    /// The scores so far, of classes with these names.
    ///
    /// # Errors
    /// No pixel counted.
    pub fn scores<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<SegmentationScores> {
        let occurring: Vec<f64> = self.classes.iter().filter_map(Pixels::iou).collect();
        let total = |of: fn(&Pixels) -> u64| self.classes.iter().map(of).sum::<u64>() as f64;
        if occurring.is_empty() {
            return Err(Error::Failed("no pixel of any label map counts: all are ignored".into()));
        }
        Ok(SegmentationScores {
            miou: occurring.iter().sum::<f64>() / occurring.len() as f64,
            pixel_accuracy: total(|pixels| pixels.intersection) / total(|pixels| pixels.truth),
            per_class: names.into_iter().map(str::to_owned).zip(self.classes.iter().map(Pixels::iou)).collect(),
            images: self.images,
        })
    }
}

/// How well a data set was segmented. Every score is a share, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentationScores {
    /// Mean of the classes' intersection over union, each summed over all images, over the classes that occur in
    /// ground truth or prediction.
    pub miou: f64,
    /// Share of the pixels with a class in the ground truth that were given it.
    pub pixel_accuracy: f64,
    /// Name and intersection over union of every class; none for one that does not occur, which JSON leaves out.
    #[serde(serialize_with = "occurring_by_name")]
    pub per_class: Vec<(String, Option<f64>)>,
    pub images: u64,
}

fn occurring_by_name<S: Serializer>(
    per_class: &[(String, Option<f64>)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(per_class.iter().filter_map(|(name, iou)| Some((name, (*iou)?))))
}
