//! Heat maps of attention over pictures.
use super::picture;
use crate::ops::Enlarge;
use crate::sample::image::write_png;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Nine points of matplotlib's *inferno* colour map, which is perceptually uniform.
const INFERNO: [[u8; 3]; 9] = [
    [0x00, 0x00, 0x04],
    [0x21, 0x0c, 0x4a],
    [0x56, 0x10, 0x6e],
    [0x89, 0x22, 0x6a],
    [0xbb, 0x37, 0x54],
    [0xe3, 0x59, 0x32],
    [0xf9, 0x8c, 0x0a],
    [0xf9, 0xc9, 0x32],
    [0xfc, 0xff, 0xa4],
];

/// Longer side, in pixels, of a picture in a sheet.
const SHEET_SIDE: u32 = 256;

/// Opacity of the heat map.
const OPACITY: f32 = 0.65;

/// The colour of a value in [0, 1], channels from 0 to 255.
pub fn inferno(value: f32) -> [f32; 3] {
    let last = INFERNO.len() - 1;
    let position = value.clamp(0.0, 1.0) * last as f32;
    let index = (position as usize).min(last - 1);
    let share = position - index as f32;
    std::array::from_fn(|channel| {
        f32::from(INFERNO[index][channel]) * (1.0 - share) + f32::from(INFERNO[index + 1][channel]) * share
    })
}

/// Overlays a map `[h, w]` on a picture, with its values scaled to [0, 1].
///
/// The map is enlarged bilinearly (torch: `align_corners=False`).
pub fn overlay(image: &RgbImage, map: &Tensor) -> Result<RgbImage> {
    let (rows, columns) = map.dims2()?;
    if rows * columns == 0 {
        return Err(Error::Failed("an empty map".into()));
    }
    let values = map.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let (least, greatest) = (finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max));
    let range = if greatest > least { greatest - least } else { 1.0 };
    let scaled: Vec<f32> = values.iter().map(|v| ((v - least) / range).clamp(0.0, 1.0)).collect();
    let horizontal = Enlarge::new(columns, image.width() as usize);
    let vertical = Enlarge::new(rows, image.height() as usize);
    Ok(RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let (left, right, across) = horizontal.at(x as usize);
        let (top, bottom, down) = vertical.at(y as usize);
        let row = |row: usize| {
            let row = row * columns;
            scaled[row + left] * (1.0 - across) + scaled[row + right] * across
        };
        let heat = inferno(row(top) * (1.0 - down) + row(bottom) * down);
        let Rgb(under) = image.get_pixel(x, y);
        Rgb(std::array::from_fn(|channel| {
            (heat[channel] * OPACITY + f32::from(under[channel]) * (1.0 - OPACITY)).round() as u8
        }))
    }))
}

/// Writes `overlay-02-dog.png` and so on into `folder`: for each word, the mean of its tokens' maps over the picture.
///
/// `maps` is `[tokens, h, w]`; words without tokens get no file. Returns the files written, each with its picture.
pub fn write_word_overlays(
    folder: &Path,
    image: &RgbImage,
    maps: &Tensor,
    words: &[(&str, Option<Range<usize>>)],
) -> Result<Vec<(PathBuf, RgbImage)>> {
    let mut written = Vec::new();
    for (number, (word, span)) in (1..).zip(words) {
        let Some(span) = span.clone() else { continue };
        let map = maps.narrow(0, span.start, span.len())?.mean(0)?;
        let name: String = word.chars().filter(|c| c.is_alphanumeric()).take(40).collect();
        let file = folder.join(format!("overlay-{number:02}-{name}.png"));
        let picture = overlay(image, &map)?;
        write_png(&file, &picture)?;
        written.push((file, picture));
    }
    Ok(written)
}

/// An image and its overlays in reading order on a square grid.
pub fn sheet<'a>(pictures: impl IntoIterator<Item = &'a RgbImage>) -> RgbImage {
    let pictures: Vec<&RgbImage> = pictures.into_iter().collect();
    let columns = (1..).find(|side| side * side >= pictures.len()).unwrap_or(1);
    picture::sheet_of_rows(SHEET_SIDE, pictures.chunks(columns).map(|row| row.iter().copied()))
}
