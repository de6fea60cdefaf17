//! The effect on drawn images of blurring a block's image→text attention: large in blocks that determine the layout.
use super::EvaluatedModel;
use super::generation::GenerationOptions;
use super::generation::draw::Painter;
use crate::model::families::Blur;
use crate::system::error::{Error, Result};
use image::RgbImage;

/// Images drawn with each block's attention blurred in turn.
pub struct Blurred {
    /// Images without blurring.
    pub plain: Vec<RgbImage>,
    /// For each block, the images with its attention blurred.
    pub by_block: Vec<Vec<RgbImage>>,
}

/// Draws an image of each caption without blurring, then with each block's image→text attention blurred in all steps,
/// always from equal noise. `progress` receives the number of images that this process has drawn; rank 0 has those of all.
///
/// # Errors
/// The options do not suit the model (`Error::Usage`), there is no caption, or an image is not finite.
pub fn draw_blurred(
    model: EvaluatedModel,
    captions: &[String],
    options: &GenerationOptions,
    sigma: f64,
    mut progress: impl FnMut(usize),
) -> Result<Blurred> {
    if captions.is_empty() {
        return Err(Error::Usage("there is no caption to draw from".into()));
    }
    let mut painter = Painter::new(model, options)?;
    let mut done = 0;
    let mut draw = |blur: Option<Blur>| {
        painter.draw_all(captions, blur, |new| {
            done += new;
            progress(done);
        })
    };
    let plain = draw(None)?;
    let blocks = 0..model.pipeline.transformer.config.num_layers();
    let by_block = blocks.map(|layer| draw(Some(Blur { layer, sigma }))).collect::<Result<_>>()?;
    Ok(Blurred { plain, by_block })
}

impl Blurred {
    /// For each block, the mean absolute difference from the plain images over all values, of 255.
    pub fn differences(&self) -> Vec<f64> {
        let difference = |pictures: &Vec<RgbImage>| {
            let pairs = pictures.iter().zip(&self.plain).flat_map(|(a, b)| a.as_raw().iter().zip(b.as_raw()));
            let (count, sum) = pairs.fold((0u64, 0u64), |(n, sum), (a, b)| (n + 1, sum + u64::from(a.abs_diff(*b))));
            sum as f64 / count.max(1) as f64
        };
        self.by_block.iter().map(difference).collect()
    }
}
