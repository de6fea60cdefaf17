//! Embedded pictures of the report, and sheets of pictures.
use crate::data::codec::resize::bilinear;
use crate::system::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::imageops::{FilterType, replace, resize};
use image::{Rgb, RgbImage};

/// Greatest longer side, in pixels, of an embedded picture.
pub const LARGEST: u32 = 448;
/// Pictures up to this longer side are embedded as PNG, larger ones as JPEG.
const SMALL: u32 = 160;
const JPEG_QUALITY: u8 = 88;

/// Space around and between pictures.
const GAP: u32 = 6;
const BACKGROUND: Rgb<u8> = Rgb([255; 3]);

/// The picture as a `data:` URI; a large one is shrunk and compressed.
pub fn data_uri(image: &RgbImage) -> Result<String> {
    let failed = |e| Error::Failed(format!("a picture of the report: {e}"));
    let side = image.width().max(image.height());
    let mut bytes = Vec::new();
    if side <= SMALL {
        image.write_with_encoder(PngEncoder::new(&mut bytes)).map_err(failed)?;
        return Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes)));
    }
    let small = if side > LARGEST { fitted(image, LARGEST) } else { image.clone() };
    small.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)).map_err(failed)?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes)))
}

/// Scales the picture to this longer side.
fn fitted(image: &RgbImage, side: u32) -> RgbImage {
    let scale = f64::from(side) / f64::from(image.width().max(image.height()));
    let scaled = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    bilinear(image, scaled(image.width()), scaled(image.height()))
}

/// Scales the picture to a longer side of at most `side`: small pictures are enlarged by a whole factor, so that their
/// pixels stay squares.
pub fn resized(image: &RgbImage, side: u32) -> RgbImage {
    let longer = image.width().max(image.height());
    match side / longer.max(1) {
        0 => fitted(image, side),
        times => resize(image, image.width() * times, image.height() * times, FilterType::Nearest),
    }
}

/// Stacks pictures vertically.
pub fn stacked(pictures: &[RgbImage]) -> RgbImage {
    let width = pictures.iter().map(RgbImage::width).max().unwrap_or(0);
    let mut stack = RgbImage::from_pixel(width, pictures.iter().map(RgbImage::height).sum(), BACKGROUND);
    let mut top = 0;
    for picture in pictures {
        replace(&mut stack, picture, 0, top);
        top += i64::from(picture.height());
    }
    stack
}

/// A sheet of square cells of `side` pixels. Each picture comes with its (column, row) and the number of cells it spans
/// each way.
pub fn sheet(side: u32, pictures: &[((u32, u32), u32, &RgbImage)]) -> RgbImage {
    let place = |index: u32| GAP + index * (side + GAP);
    let columns = pictures.iter().map(|((column, _), span, _)| column + span).max().unwrap_or(0);
    let rows = pictures.iter().map(|((_, row), span, _)| row + span).max().unwrap_or(0);
    let mut sheet = RgbImage::from_pixel(place(columns), place(rows), BACKGROUND);
    for ((column, row), span, image) in pictures {
        let picture = resized(image, span * side + (span - 1) * GAP);
        replace(&mut sheet, &picture, i64::from(place(*column)), i64::from(place(*row)));
    }
    sheet
}

/// A sheet of rows of pictures, one cell each.
pub fn sheet_of_rows<'a, R>(side: u32, rows: impl IntoIterator<Item = R>) -> RgbImage
where
    R: IntoIterator<Item = &'a RgbImage>,
{
    let row = |(row, pictures): (u32, R)| {
        (0..).zip(pictures).map(move |(column, picture)| ((column, row), 1, picture)).collect::<Vec<_>>()
    };
    sheet(side, &(0..).zip(rows).flat_map(row).collect::<Vec<_>>())
}
