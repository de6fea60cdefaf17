//! Pictures of features: three principal components as red, green and blue.
use super::picture;
use image::{Rgb, RgbImage};

/// Longer side, in pixels, of a picture in the sheet, and of one by itself.
const SIDE: u32 = 192;

/// Components in [0, 1] of positions on a grid of rows and columns, a square of pixels each.
pub fn picture(components: &[[f32; 3]], (rows, columns): (usize, usize)) -> RgbImage {
    let small = RgbImage::from_fn(columns as u32, rows as u32, |x, y| {
        Rgb(components[y as usize * columns + x as usize].map(|value| (value * 255.0).round() as u8))
    });
    picture::resized(&small, SIDE.max(small.width().max(small.height())))
}

/// An image as the sheet shows it.
pub fn small(image: &RgbImage) -> RgbImage {
    picture::resized(image, SIDE)
}

/// A row an image: the image itself, as [`small`] has it, and a picture for every block.
pub fn sheet(rows: &[(RgbImage, Vec<RgbImage>)]) -> RgbImage {
    let cells: Vec<_> = (0..)
        .zip(rows)
        .flat_map(|(row, (image, pictures))| {
            let all = std::iter::once(image).chain(pictures);
            (0..).zip(all).map(move |(column, picture)| ((column, row), 1, picture))
        })
        .collect();
    picture::sheet(SIDE, &cells)
}
