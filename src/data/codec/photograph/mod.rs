//! Photographs: JPEG, PNG, WebP, BMP, TIFF, PNM or GIF (its first picture) to 8-bit RGB, upright.
//!
//! The pixels are those of Pillow's `ImageOps.exif_transpose(Image.open(file))` as RGB, bit for bit; transparent ones lie
//! over a background as with `Image.alpha_composite`. Two things differ: 16-bit grey
//! is scaled, where Pillow clips at 255, and JPEG within TIFF is off by one in some values.
mod format;
mod orientation;
pub(super) mod rgb;
mod tiff;

use super::jpeg;
use crate::system::guard::guarded;
use crate::system::limits::{self, PHOTOGRAPH};
use format::PictureFormat;
pub use format::{EXTENSIONS, UNREAD_EXTENSIONS};
use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, ImageResult, Limits, Rgb, RgbImage};
pub use orientation::{Orientation, exchanges_sides, upright};
use rgb::Pixels;
use std::io::Cursor;
use std::sync::Once;
use tiff::Tiff;

/// What lies behind transparent pixels where nothing else is said.
pub const WHITE: Rgb<u8> = Rgb([255; 3]);

/// Greatest ratio of the longer to the shorter side; scaled by the shorter side, larger ratios would take gigabytes.
const LONGEST_SHAPE: usize = 32;

/// Bytes a pixel while decoding a JPEG: three channels of 16-bit coefficients, their samples, the pixels.
const JPEG_BYTES: u64 = 12;

/// What the header of a picture file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureHeader {
    /// Width and height of the upright picture.
    pub size: (usize, usize),
    /// How the stored pixels are turned to stand upright.
    pub orientation: Orientation,
    /// Whether pixels may be transparent.
    pub has_alpha: bool,
    /// Whether it is a JPEG of inks (CMYK or YCCK).
    pub is_cmyk: bool,
}

impl PictureHeader {
    /// Whether a mask or label map of the size `mask` is to be turned as the picture is: it has the size of the stored
    /// picture, and not of the upright one. `None` if it has neither. Where both have one size, masks are taken as
    /// upright, and that is said once.
    pub fn turns_mask(&self, mask: (usize, usize)) -> Option<bool> {
        static SAID: Once = Once::new();
        let (width, height) = self.size;
        let stored = if exchanges_sides(self.orientation) { (height, width) } else { (width, height) };
        if mask == self.size {
            if stored == mask && self.orientation != Orientation::NoTransforms {
                SAID.call_once(|| {
                    tracing::warn!(
                        "some pictures are turned by their EXIF orientation, and their masks have one size either way: \
                         masks are taken to lie over the upright picture"
                    );
                });
            }
            return Some(false);
        }
        (mask == stored).then_some(true)
    }
}

/// Decodes a picture, upright, over white.
///
/// # Errors
/// Those of [`decode_over`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    decode_over(bytes, WHITE)
}

/// Decodes a picture, upright; transparent pixels lie over `background`.
///
/// # Errors
/// The file is no picture that is read, truncated, or too large (`PHOTOGRAPH`) (with the reason).
pub fn decode_over(bytes: &[u8], background: Rgb<u8>) -> Result<RgbImage, String> {
    static SAID: Once = Once::new();
    guarded(|| {
        let format = format::recognise(bytes)?;
        let pixels = pixels(bytes, format)?;
        if !SAID.is_completed() && pixels.is_transparent() {
            SAID.call_once(|| {
                let Rgb([red, green, blue]) = background;
                tracing::info!("transparent pixels of pictures lie over #{red:02x}{green:02x}{blue:02x}");
            });
        }
        let stored = pixels.over(background);
        Ok(match orientation::of(bytes, format) {
            Orientation::NoTransforms => stored,
            orientation => {
                let mut image = DynamicImage::ImageRgb8(stored);
                image.apply_orientation(orientation);
                image.into_rgb8()
            }
        })
    })
}

/// Reads the header of a picture.
///
/// # Errors
/// The file is no picture that is read, or its header is damaged (with the reason).
pub fn header(bytes: &[u8]) -> Result<PictureHeader, String> {
    guarded(|| {
        let format = format::recognise(bytes)?;
        let orientation = orientation::of(bytes, format);
        let frame = if format == PictureFormat::Jpeg { jpeg::frame_size(bytes) } else { None };
        let ((width, height), has_alpha, is_cmyk) = match (format, frame) {
            (_, Some((width @ 1.., height @ 1.., channels))) => ((width, height), false, channels == 4),
            (PictureFormat::Tiff, _) => {
                let tiff = Tiff::open(bytes)?;
                (tiff.size, tiff.has_alpha(), false)
            }
            _ => {
                let decoder = decoder(bytes, format)?;
                (decoder.dimensions(), decoder.color_type().has_alpha(), false)
            }
        };
        let (width, height) = (width as usize, height as usize);
        let size = if exchanges_sides(orientation) { (height, width) } else { (width, height) };
        Ok(PictureHeader { size, orientation, has_alpha, is_cmyk })
    })
}

/// The pixels as they are stored.
fn pixels(bytes: &[u8], format: PictureFormat) -> Result<Pixels, String> {
    match format {
        PictureFormat::Tiff => return Tiff::open(bytes)?.decode(),
        PictureFormat::Jpeg => {
            if let Some(image) = jpeg::decode(bytes) {
                return Ok(Pixels::Opaque(image));
            }
            if !has_jpeg_end(bytes) {
                return Err("the JPEG is cut short".into());
            }
        }
        _ => (),
    }
    let decoder = decoder(bytes, format)?;
    let (width, height) = decoder.dimensions();
    let count = u64::from(width) * u64::from(height);
    let color = decoder.color_type();
    let yielded = match format {
        PictureFormat::Jpeg => count.checked_mul(JPEG_BYTES),
        _ => count.checked_mul(u64::from(color.bytes_per_pixel())),
    };
    let converted = if color == image::ColorType::Rgb8 { Some(0) } else { count.checked_mul(3) };
    let all = yielded.zip(converted).and_then(|(yielded, converted)| yielded.checked_add(converted));
    let failed = |problem: &dyn std::fmt::Display| format!("no readable image: {problem}");
    limits::check_picture((width.into(), height.into()), all, PHOTOGRAPH).map_err(|problem| failed(&problem))?;
    let image = DynamicImage::from_decoder(decoder).map_err(|problem| failed(&problem))?;
    Ok(match format {
        // Its values are scaled to their greatest, not cut off.
        PictureFormat::Pnm => Pixels::Opaque(image.into_rgb8()),
        _ => image.into(),
    })
}

/// A decoder that has read the header, of any format but TIFF.
fn decoder(bytes: &[u8], format: PictureFormat) -> Result<Box<dyn ImageDecoder + '_>, String> {
    let file = Cursor::new(bytes);
    let boxed = || -> ImageResult<Box<dyn ImageDecoder + '_>> {
        Ok(match format {
            PictureFormat::Png => {
                let mut limits = Limits::no_limits();
                limits.max_alloc = Some(limits::PNG_EXTRAS as u64);
                Box::new(PngDecoder::with_limits(file, limits)?)
            }
            PictureFormat::WebP => Box::new(WebPDecoder::new(file)?),
            PictureFormat::Bmp => Box::new(BmpDecoder::new(file)?),
            PictureFormat::Pnm => Box::new(PnmDecoder::new(file)?),
            PictureFormat::Gif => Box::new(GifDecoder::new(file)?),
            PictureFormat::Jpeg | PictureFormat::Tiff => Box::new(JpegDecoder::new(file)?),
        })
    };
    boxed().map_err(|problem| format!("no readable image: {problem}"))
}

/// # Errors
/// The longer side is too many times the shorter.
pub fn check_shape((width, height): (usize, usize)) -> Result<(), String> {
    if width.max(height) > LONGEST_SHAPE * width.min(height) {
        return Err(format!("an image of {width}×{height} pixels is too elongated"));
    }
    Ok(())
}

/// Whether an end-of-image marker follows the last start-of-scan marker; decoders fill missing pixels with grey.
fn has_jpeg_end(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xd9) > last(0xda)
}
