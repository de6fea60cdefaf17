//! Intersection over union, accumulated over a data set.
use super::folder::{Class, NO_CLASS, SegmentationMap};
use crate::distributed::{Collective, gather_values};
use crate::system::error::{Error, Result};
use serde::{Deserialize, Serialize, Serializer};

/// Pixel counts of one class over all images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ClassCounts {
    /// Pixels where ground truth and prediction agree.
    intersection: u64,
    truth: u64,
    predicted: u64,
}

impl ClassCounts {
    fn union(&self) -> u64 {
        self.truth + self.predicted - self.intersection
    }

    /// Intersection over union; `None` if the class occurs in neither ground truth nor prediction.
    fn iou(&self) -> Option<f64> {
        (self.union() > 0).then(|| self.intersection as f64 / self.union() as f64)
    }
}

/// Accumulates pixel counts. Memory depends on the number of classes alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accumulator {
    classes: Vec<ClassCounts>,
    images: u64,
}

impl Accumulator {
    /// Empty counts of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes: vec![ClassCounts::default(); classes], images: 0 }
    }

    /// Adds an image. Pixels without class in the ground truth do not count; pixels without class in the prediction
    /// count as misses.
    ///
    /// # Panics
    /// If the sizes differ, or a class is out of range.
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

    /// The counts of all processes together.
    ///
    /// # Errors
    /// A process has failed.
    pub fn merged(self, processes: &dyn Collective) -> Result<Self> {
        let mut sum = Self::new(self.classes.len());
        for one in gather_values(processes, self, "counts of pixels")? {
            for (sum, one) in sum.classes.iter_mut().zip(one.classes) {
                sum.intersection += one.intersection;
                sum.truth += one.truth;
                sum.predicted += one.predicted;
            }
            sum.images += one.images;
        }
        Ok(sum)
    }

    /// The scores of all images added; `classes` are those of the data set.
    ///
    /// # Errors
    /// No pixel counted.
    pub fn scores(&self, classes: &[Class]) -> Result<SegmentationScores> {
        let occurring: Vec<f64> = self.classes.iter().filter_map(ClassCounts::iou).collect();
        let total = |of: fn(&ClassCounts) -> u64| self.classes.iter().map(of).sum::<u64>() as f64;
        if occurring.is_empty() {
            return Err(Error::Failed("no pixel of any label map counts: all are ignored".into()));
        }
        let names = classes.iter().map(|class| class.name.clone());
        Ok(SegmentationScores {
            miou: occurring.iter().sum::<f64>() / occurring.len() as f64,
            pixel_accuracy: total(|pixels| pixels.intersection) / total(|pixels| pixels.truth),
            per_class: names.zip(self.classes.iter().map(ClassCounts::iou)).collect(),
            images: self.images,
        })
    }
}

/// Segmentation scores, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentationScores {
    /// Mean over classes of the intersection over union of all images; classes that occur in neither ground truth nor
    /// prediction are left out.
    pub miou: f64,
    /// Fraction of the counted pixels that are predicted correctly.
    pub pixel_accuracy: f64,
    /// Name and IoU of each class; `None`, and absent in JSON, if it does not occur.
    #[serde(serialize_with = "occurring_by_name")]
    pub per_class: Vec<(String, Option<f64>)>,
    /// How many images were measured.
    pub images: u64,
}

fn occurring_by_name<S: Serializer>(
    per_class: &[(String, Option<f64>)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(per_class.iter().filter_map(|(name, iou)| Some((name, (*iou)?))))
}
