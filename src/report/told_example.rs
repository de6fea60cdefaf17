//! Examples of a segmentation that another process has made, as the words that they are told in.
use super::segmentation::{SegmentationExample, Segmented};
use super::summary::Stage;
use crate::eval::turns::Turns;
use crate::system::error::{Error, Result};
use candle_core::{Device, Tensor};
use image::RgbImage;
use serde::{Deserialize, Serialize};

/// An example with one model's segmentation.
#[derive(Serialize, Deserialize)]
struct Told {
    key: String,
    prompt: String,
    size: (u32, u32),
    pixels: Vec<u8>,
    classes: Vec<(u32, String)>,
    truth: Vec<u32>,
    /// `[classes, rows, columns]`, and the values.
    maps: ((usize, usize, usize), Vec<f32>),
    labels: Vec<u32>,
}

/// At rank 0 the examples of all processes, whose numbers come with them, in their order; at the others none.
///
/// # Errors
/// A process has failed.
pub fn at_main(
    own: Vec<(usize, SegmentationExample)>,
    stage: Stage,
    turns: &Turns,
) -> Result<Vec<SegmentationExample>> {
    if turns.processes.size() == 1 {
        return Ok(own.into_iter().map(|(_, example)| example).collect());
    }
    let pieces = own.into_iter().map(|(number, example)| Ok((number, write(example)?))).collect::<Result<_>>()?;
    turns.pieces_at_main(pieces)?.iter().map(|told| read(told, stage)).collect()
}

fn write(example: SegmentationExample) -> Result<Vec<u8>> {
    let SegmentationExample { key, prompt, image, classes, truth, mut stages } = example;
    let Some((_, Segmented { maps, labels })) = stages.pop() else {
        return Err(Error::Failed(format!("segmentation example {key}: no segmentation")));
    };
    let maps = (maps.dims3()?, maps.flatten_all()?.to_vec1()?);
    let told = Told { key, prompt, size: image.dimensions(), pixels: image.into_raw(), classes, truth, maps, labels };
    serde_json::to_vec(&told).map_err(failed)
}

fn read(told: &[u8], stage: Stage) -> Result<SegmentationExample> {
    let Told { key, prompt, size, pixels, classes, truth, maps, labels } =
        serde_json::from_slice(told).map_err(failed)?;
    let image = RgbImage::from_raw(size.0, size.1, pixels);
    let image = image.ok_or_else(|| Error::Failed(format!("segmentation example {key}: not one color a pixel")))?;
    let maps = Tensor::from_vec(maps.1, maps.0, &Device::Cpu)?;
    Ok(SegmentationExample { key, prompt, image, classes, truth, stages: vec![(stage, Segmented { maps, labels })] })
}

fn failed(problem: serde_json::Error) -> Error {
    Error::Failed(format!("a segmentation example cannot be told: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_read_as_it_was_written() {
        let maps = Tensor::new(&[[[0.1f32, 1.0e-7], [f32::MIN_POSITIVE, 0.333_333_34]]], &Device::Cpu).expect("maps");
        let example = SegmentationExample {
            key: "a/b".into(),
            prompt: "a \"cat\"".into(),
            image: RgbImage::from_fn(2, 3, |x, y| image::Rgb([x as u8, 100 * y as u8, 255])),
            classes: vec![(7, "cat".into())],
            truth: vec![7; 6],
            stages: vec![(Stage::After, Segmented { maps, labels: vec![65535, 7, 7, 7, 7, 7] })],
        };
        let found = read(&write(example.clone()).expect("written"), Stage::After).expect("read");
        assert_eq!((&found.key, &found.prompt, &found.image), (&example.key, &example.prompt, &example.image));
        assert_eq!((&found.classes, &found.truth), (&example.classes, &example.truth));
        let values = |example: &SegmentationExample| example.stages[0].1.maps.flatten_all()?.to_vec1::<f32>();
        assert_eq!(values(&found).expect("values"), values(&example).expect("values"));
        assert_eq!((found.stages[0].0, &found.stages[0].1.labels), (Stage::After, &example.stages[0].1.labels));
    }
}
