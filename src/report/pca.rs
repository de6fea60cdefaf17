//! Pictures of features: three principal components as red, green and blue.
use super::picture;
use image::{Rgb, RgbImage};

/// Longer side, in pixels, of a picture, alone or in a sheet.
const SIDE: u32 = 192;

/// A picture of components in [0, 1] on a grid of (rows, columns); each position is a square of pixels.
pub fn picture(components: &[[f32; 3]], (rows, columns): (usize, usize)) -> RgbImage {
    let small = RgbImage::from_fn(columns as u32, rows as u32, |x, y| {
        Rgb(components[y as usize * columns + x as usize].map(|value| (value * 255.0).round() as u8))
    });
    picture::resized(&small, SIDE.max(small.width().max(small.height())))
}

/// The image at the sheet's size.
pub fn small(image: &RgbImage) -> RgbImage {
    picture::resized(image, SIDE)
}

/// A row for each image: the image at the size of [`small`], then a picture for each block.
pub fn sheet(rows: &[(RgbImage, Vec<RgbImage>)]) -> RgbImage {
    picture::sheet_of_rows(SIDE, rows.iter().map(|(image, pictures)| std::iter::once(image).chain(pictures)))
}
