//! The first few images of an evaluation, kept with what each model makes of them, for the page of a run.
use super::ImageResult;
use crate::error::{Error, Result};
use crate::report::segmentation::{SegmentationExample, Segmented};
use crate::report::summary::Stage;
use candle_core::{Device, Tensor};

/// Images of one data set; every model is to see it with the same protocol.
pub struct Examples {
    count: usize,
    found: Vec<SegmentationExample>,
}

impl Examples {
    /// Keeps the first `count` images.
    pub fn new(count: usize) -> Self {
        Self { count, found: vec![] }
    }

    /// Keeps what the model of `stage` makes of an image, if it is among the first: to be called for each, in order.
    ///
    /// # Errors
    /// An image that no model before has seen comes out of order.
    pub fn add(&mut self, stage: Stage, result: &ImageResult) -> Result<()> {
        if result.index >= self.count {
            return Ok(());
        }
        if result.index == self.found.len() {
            self.found.push(example(result));
        }
        let Some(example) = self.found.get_mut(result.index) else {
            return Err(Error::Failed(format!("example {}: image {} is missing", result.index, self.found.len())));
        };
        let (rows, columns) = result.maps.grid;
        let shape = (result.maps.classes.len(), rows, columns);
        let maps = Tensor::from_slice(&result.maps.values, shape, &Device::Cpu)?;
        let labels = result.predicted.classes.iter().copied().map(u32::from).collect();
        example.stages.push((stage, Segmented { maps, labels }));
        Ok(())
    }

    /// The examples, each with what the models made of it.
    pub fn into_inner(self) -> Vec<SegmentationExample> {
        self.found
    }
}

/// The image without any model's view of it; labels are indices of classes.
fn example(result: &ImageResult) -> SegmentationExample {
    let prompts: Vec<&str> = result.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    let class = |index: &u16| Some((u32::from(*index), result.classes.get(usize::from(*index))?.name.clone()));
    SegmentationExample {
        key: result.image.key.clone(),
        prompt: prompts.join(" / "),
        image: result.image.image.clone(),
        classes: result.maps.classes.iter().filter_map(class).collect(),
        truth: result.image.truth.classes.iter().copied().map(u32::from).collect(),
        stages: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Class, ClassMaps, LabelledImage, NO_CLASS, SegmentationMap};
    use super::*;

    #[test]
    fn the_first_images_gather_what_each_model_makes_of_them() {
        let classes: Vec<Class> =
            [(3, "cat"), (9, "sea")].map(|(label, name)| Class { label, name: name.into() }).to_vec();
        let map = |classes| SegmentationMap { width: 2, height: 1, classes };
        let image = |key: &str| LabelledImage {
            key: key.into(),
            image: image::RgbImage::new(2, 1),
            truth: map(vec![1, NO_CLASS]),
        };
        let maps = ClassMaps { grid: (1, 2), classes: vec![1], values: vec![0.25, 0.75] };
        let predicted = map(vec![1, 1]);
        let mut examples = Examples::new(2);
        for stage in [Stage::Before, Stage::After] {
            for (index, key) in ["a", "b", "c"].into_iter().enumerate() {
                let (image, prompts) = (image(key), &[][..]);
                let result = ImageResult {
                    index,
                    image: &image,
                    classes: &classes,
                    prompts,
                    maps: &maps,
                    predicted: &predicted,
                };
                examples.add(stage, &result).expect("an example");
            }
        }
        let [a, b] = &examples.into_inner()[..] else { panic!("two examples") };
        assert_eq!((a.key.as_str(), b.key.as_str()), ("a", "b"));
        assert_eq!((&a.classes[..], &a.truth[..]), (&[(1, "sea".to_string())][..], &[1, u32::from(NO_CLASS)][..]));
        let [(Stage::Before, _), (Stage::After, after)] = &b.stages[..] else { panic!("both models") };
        assert_eq!(after.maps.to_vec3::<f32>().expect("maps"), [[[0.25, 0.75]]]);
        assert_eq!(after.labels, [1, 1]);
    }
}
