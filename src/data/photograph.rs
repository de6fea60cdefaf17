//! Photographs as files: JPEG or PNG to 8-bit RGB, the pixels that Pillow's `open(file).convert("RGB")` yields.
use super::jpeg;
use image::{DynamicImage, ImageFormat, ImageReader, RgbImage};
use std::io::Cursor;

/// Decodes a JPEG or PNG as stored (orientation tags do not count: masks lie on the stored pixels); alpha is left out.
///
/// # Errors
/// Says what is wrong with the file: no picture, cut short, or too large (more than half a gigabyte when decoded).
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    if let Some(image) = jpeg::decode(bytes) {
        return Ok(image);
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|problem| problem.to_string())?;
    if reader.format() == Some(ImageFormat::Jpeg) && !has_jpeg_end(bytes) {
        return Err("the JPEG is cut short".into());
    }
    let image = reader.decode().map_err(|problem| format!("no readable image: {problem}"))?;
    Ok(match image {
        // Pillow keeps the upper byte of each channel, the crate `image` rounds.
        DynamicImage::ImageRgb16(image) => upper_bytes(image.width(), image.height(), image.pixels().map(|p| p.0)),
        DynamicImage::ImageRgba16(image) => {
            upper_bytes(image.width(), image.height(), image.pixels().map(|&image::Rgba([r, g, b, _])| [r, g, b]))
        }
        image => image.into_rgb8(),
    })
}

/// Width and height of a JPEG or PNG as stored, from its header alone.
///
/// # Errors
/// Says what is wrong with the file.
pub fn size(bytes: &[u8]) -> Result<(usize, usize), String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|problem| problem.to_string())?;
    let (width, height) = reader.into_dimensions().map_err(|problem| format!("no readable image: {problem}"))?;
    Ok((width as usize, height as usize))
}

fn upper_bytes(width: u32, height: u32, pixels: impl Iterator<Item = [u16; 3]>) -> RgbImage {
    let mut output = RgbImage::new(width, height);
    for (target, pixel) in output.pixels_mut().zip(pixels) {
        target.0 = pixel.map(|value| (value >> 8) as u8);
    }
    output
}

/// Whether an end-of-image marker follows the last start of a scan; decoders fill what is missing with grey.
fn has_jpeg_end(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xd9) > last(0xda)
}
