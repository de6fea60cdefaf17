//! Photographs: JPEG or PNG to 8-bit RGB, bit-exact with Pillow's `open(file).convert("RGB")`.
use super::jpeg;
use crate::system::guard::guarded;
use crate::system::limits::{self, PHOTOGRAPH};
use image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use std::io::Cursor;

/// Ends of the names of picture files that are read, in lower case.
pub const EXTENSIONS: [&str; 15] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "pnm", "ppm", "pgm", "pbm", "gif"];

/// Ends of the names of pictures in formats that are not read, in lower case: such a file is data that somebody meant to
/// be used.
pub const UNREAD_EXTENSIONS: [&str; 20] = [
    "heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "psd", "svg", "exr", "hdr", "tga", "qoi", "ico", "dng", "cr2",
    "cr3", "nef", "arw", "raf",
];

/// Greatest ratio of the longer to the shorter side; scaled by the shorter side, larger ratios would take gigabytes.
const LONGEST_SHAPE: usize = 32;

/// Bytes a pixel while decoding a JPEG: three channels of 16-bit coefficients, their samples, the pixels.
const JPEG_BYTES: u64 = 12;

/// Decodes a JPEG or PNG. Orientation tags are ignored, since masks refer to the stored pixels; alpha is dropped.
///
/// # Errors
/// The file is no picture, truncated, or too large (`PHOTOGRAPH`) (with the reason).
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    guarded(|| {
        if let Some(image) = jpeg::decode(bytes) {
            return Ok(image);
        }
        let format = format(bytes)?;
        if format == ImageFormat::Jpeg && !has_jpeg_end(bytes) {
            return Err("the JPEG is cut short".into());
        }
        let decoder = decoder(bytes, format)?;
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        let color = decoder.color_type();
        let yielded = match format {
            ImageFormat::Jpeg => pixels.checked_mul(JPEG_BYTES),
            _ => pixels.checked_mul(u64::from(color.bytes_per_pixel())),
        };
        let converted = if color == image::ColorType::Rgb8 { Some(0) } else { pixels.checked_mul(3) };
        let all = yielded.zip(converted).and_then(|(yielded, converted)| yielded.checked_add(converted));
        let failed = |problem: &dyn std::fmt::Display| format!("no readable image: {problem}");
        limits::check_picture((width.into(), height.into()), all, PHOTOGRAPH).map_err(|problem| failed(&problem))?;
        let image = DynamicImage::from_decoder(decoder).map_err(|problem| failed(&problem))?;
        Ok(match image {
            // Pillow keeps the upper byte of each channel; the crate `image` would round.
            DynamicImage::ImageRgb16(image) => upper_bytes(image.width(), image.height(), image.pixels().map(|p| p.0)),
            DynamicImage::ImageRgba16(image) => {
                upper_bytes(image.width(), image.height(), image.pixels().map(|&image::Rgba([r, g, b, _])| [r, g, b]))
            }
            image => image.into_rgb8(),
        })
    })
}

/// Stored width and height of a JPEG or PNG, from its header.
///
/// # Errors
/// The header is damaged (with the reason).
pub fn size(bytes: &[u8]) -> Result<(usize, usize), String> {
    guarded(|| {
        let (width, height) = decoder(bytes, format(bytes)?)?.dimensions();
        Ok((width as usize, height as usize))
    })
}

fn format(bytes: &[u8]) -> Result<ImageFormat, String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|problem| problem.to_string())?;
    reader.format().ok_or_else(|| "no readable image: The image format could not be determined".into())
}

/// A decoder that has read the header.
fn decoder(bytes: &[u8], format: ImageFormat) -> Result<Box<dyn ImageDecoder + '_>, String> {
    let failed = |problem: image::ImageError| format!("no readable image: {problem}");
    let file = Cursor::new(bytes);
    match format {
        ImageFormat::Png => {
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(limits::PNG_EXTRAS as u64);
            Ok(Box::new(PngDecoder::with_limits(file, limits).map_err(failed)?))
        }
        ImageFormat::Jpeg => Ok(Box::new(JpegDecoder::new(file).map_err(failed)?)),
        other => Err(format!("no readable image: {other:?}, expected JPEG or PNG")),
    }
}

/// # Errors
/// The longer side is too many times the shorter.
pub fn check_shape((width, height): (usize, usize)) -> Result<(), String> {
    if width.max(height) > LONGEST_SHAPE * width.min(height) {
        return Err(format!("an image of {width}×{height} pixels is too elongated"));
    }
    Ok(())
}

fn upper_bytes(width: u32, height: u32, pixels: impl Iterator<Item = [u16; 3]>) -> RgbImage {
    let mut output = RgbImage::new(width, height);
    for (target, pixel) in output.pixels_mut().zip(pixels) {
        target.0 = pixel.map(|value| (value >> 8) as u8);
    }
    output
}

/// Whether an end-of-image marker follows the last start-of-scan marker; decoders fill missing pixels with grey.
fn has_jpeg_end(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xd9) > last(0xda)
}
