//! Examples of a segmentation that another process has made.
use super::segmentation::SegmentationExample;
use crate::eval::turns::Turns;
use crate::system::error::{Error, Result};

/// At rank 0 the examples of all processes, whose numbers come with them, in their order; at the others none.
///
/// # Errors
/// A process has failed.
pub fn at_main(own: Vec<(usize, SegmentationExample)>, turns: &Turns) -> Result<Vec<SegmentationExample>> {
    if turns.processes.size() == 1 {
        return Ok(own.into_iter().map(|(_, example)| example).collect());
    }
    let failed = |e: serde_json::Error| Error::Failed(format!("a segmentation example cannot be told: {e}"));
    let tell = |(number, example)| Ok((number, serde_json::to_vec(&example).map_err(failed)?));
    let pieces = own.into_iter().map(tell).collect::<Result<_>>()?;
    turns.pieces_at_main(pieces)?.iter().map(|told| serde_json::from_slice(told).map_err(failed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::segmentation::Segmented;
    use crate::report::summary::Stage;
    use candle_core::{Device, Tensor};
    use image::RgbImage;

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
        let told = serde_json::to_vec(&example).expect("written");
        let found: SegmentationExample = serde_json::from_slice(&told).expect("read");
        assert_eq!((&found.key, &found.prompt, &found.image), (&example.key, &example.prompt, &example.image));
        assert_eq!((&found.classes, &found.truth), (&example.classes, &example.truth));
        let values = |example: &SegmentationExample| example.stages[0].1.maps.flatten_all()?.to_vec1::<f32>();
        assert_eq!(values(&found).expect("values"), values(&example).expect("values"));
        assert_eq!((found.stages[0].0, &found.stages[0].1.labels), (Stage::After, &example.stages[0].1.labels));
    }
}
