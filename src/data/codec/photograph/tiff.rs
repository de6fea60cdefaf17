//! TIFF: the first picture of a file, by the crate `tiff`; what its samples mean is Pillow's reading
//! (`TiffImagePlugin.py`).
use super::orientation::{IfdEntry, entry};
use super::rgb::{Pixels, from_cmyk};
use crate::system::limits::{self, PHOTOGRAPH};
use image::{RgbImage, RgbaImage};
use std::borrow::Cow;
use std::fmt::Display;
use std::io::Cursor;
use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

/// Tag `PhotometricInterpretation`, and its values for indices into a palette and for grey.
const PHOTOMETRIC: u16 = 262;
const PALETTE: u64 = 3;
const GREY: u8 = 1;

/// Value of the tag `ExtraSamples` for colours that were multiplied with alpha.
const MULTIPLIED: u16 = 1;

/// A TIFF whose header was read.
pub(super) struct Tiff<'a> {
    decoder: Decoder<Cursor<Cow<'a, [u8]>>>,
    pub size: (u32, u32),
    samples: Samples,
    /// Tag `ColorMap`: all reds, all greens, all blues, of 16 bits.
    palette: Option<Vec<u16>>,
    /// Tag `ExtraSamples`: what stands behind the colours.
    extra: Vec<u16>,
}

/// What the samples of a pixel are.
#[derive(Clone, Copy, PartialEq)]
enum Samples {
    /// One sample of so many bits, several in a byte; rows begin with a byte.
    Packed(u8),
    Grey,
    GreyAlpha,
    Rgb,
    /// Its fourth is alpha or nothing, as `ExtraSamples` says.
    Rgba,
    Cmyk,
}

impl Samples {
    fn count(self) -> usize {
        match self {
            Self::Packed(_) | Self::Grey => 1,
            Self::GreyAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba | Self::Cmyk => 4,
        }
    }
}

impl<'a> Tiff<'a> {
    /// # Errors
    /// The header is damaged, or says a kind of picture that is not read.
    pub fn open(bytes: &'a [u8]) -> Result<Self, String> {
        // The crate has no palettes: their indices are read as grey.
        let indices = entry(bytes, PHOTOMETRIC).filter(|photometric| photometric.value == PALETTE);
        let mut file = Cow::Borrowed(bytes);
        if let Some(IfdEntry { at, .. }) = indices {
            let value = file.to_mut().get_mut(at..at + 2).ok_or("no readable image: the header is cut short")?;
            value.copy_from_slice(&if bytes.starts_with(b"II") { [GREY, 0] } else { [0, GREY] });
        }
        let mut decoder = Decoder::new(Cursor::new(file)).map_err(failed)?;
        let palette = indices.map(|_| decoder.get_tag_u16_vec(Tag::ColorMap)).transpose().map_err(failed)?;
        let size = decoder.dimensions().map_err(failed)?;
        let extra = decoder.find_tag_unsigned_vec(Tag::ExtraSamples).map_err(failed)?.unwrap_or_default();
        let kind = decoder.colortype();
        let samples = match &kind {
            Ok(ColorType::Gray(bits @ (1 | 2 | 4))) => Samples::Packed(*bits),
            Ok(ColorType::Gray(8)) => Samples::Grey,
            Ok(ColorType::Gray(16)) if palette.is_none() => Samples::Grey,
            Ok(ColorType::GrayA(8 | 16) | ColorType::Multiband { bit_depth: 8 | 16, num_samples: 2 }) => {
                Samples::GreyAlpha
            }
            Ok(ColorType::RGB(8 | 16)) => Samples::Rgb,
            Ok(ColorType::RGBA(8 | 16)) => Samples::Rgba,
            Ok(ColorType::CMYK(8 | 16)) => Samples::Cmyk,
            _ => {
                let what = kind.map_or_else(|problem| problem.to_string(), |kind| format!("{kind:?}"));
                return Err(format!("a TIFF of this kind is not read ({what}): convert it to PNG"));
            }
        };
        Ok(Self { decoder, size, samples, palette, extra })
    }

    pub fn has_alpha(&self) -> bool {
        // Without the tag, a fourth channel is alpha.
        matches!(self.samples, Samples::GreyAlpha | Samples::Rgba) && self.extra.first() != Some(&0)
    }

    /// # Errors
    /// The file is damaged, or would take too much memory.
    pub fn decode(mut self) -> Result<Pixels, String> {
        let (width, height) = self.size;
        let pixels = u64::from(width) * u64::from(height);
        // Samples of up to 16 bits, those in 8, RGB.
        let bytes = pixels.checked_mul(3 * self.samples.count() as u64 + 3);
        limits::check_picture((width.into(), height.into()), bytes, PHOTOGRAPH)?;
        let mut limits = Limits::default();
        limits.decoding_buffer_size = PHOTOGRAPH.bytes as usize;
        limits.intermediate_buffer_size = PHOTOGRAPH.bytes as usize;
        let mut decoder = self.decoder.with_limits(limits);
        let mut result = DecodingResult::U8(Vec::new());
        let layout = decoder.read_image_to_buffer(&mut result).map_err(failed)?;
        let samples = match result {
            DecodingResult::U8(samples) => samples,
            DecodingResult::U16(samples) if self.samples == Samples::Grey => {
                samples.into_iter().map(|sample| ((u32::from(sample) + 128) / 257) as u8).collect()
            }
            DecodingResult::U16(samples) => samples.into_iter().map(|sample| (sample >> 8) as u8).collect(),
            _ => return Err("a TIFF whose samples are no whole numbers is not read: convert it to PNG".into()),
        };
        if layout.planes > 1 {
            return Err("a TIFF with a plane for each channel is not read: convert it to PNG".into());
        }
        self.decoder = decoder;
        self.pixels(samples).ok_or_else(|| failed("it holds fewer pixels than its header says"))
    }

    /// `None` if there are not as many samples as the picture has.
    fn pixels(&self, samples: Vec<u8>) -> Option<Pixels> {
        let (width, height) = self.size;
        let opaque = |values: Vec<u8>| RgbImage::from_raw(width, height, values).map(Pixels::Opaque);
        let has_alpha = self.has_alpha();
        let pixel = |[red, green, blue, alpha]: [u8; 4]| match self.extra.first() {
            Some(&MULTIPLIED) => divided([red, green, blue, alpha]),
            _ => [red, green, blue, alpha],
        };
        let (quads, pairs) = (samples.as_chunks::<4>().0, samples.as_chunks::<2>().0);
        match self.samples {
            Samples::Packed(bits) => {
                let (width, bits, most) = (width as usize, usize::from(bits), (1u8 << bits) - 1);
                let rows = samples.chunks_exact((width * bits).div_ceil(8));
                let sample = |row: &[u8], x: usize| row[x * bits / 8] >> (8 - bits - x * bits % 8) & most;
                let values = rows.flat_map(|row| (0..width).map(move |x| sample(row, x)));
                match &self.palette {
                    Some(palette) => opaque(coloured(values, palette)?),
                    None => opaque(values.flat_map(|value| [value * (255 / most); 3]).collect()),
                }
            }
            Samples::Grey => match &self.palette {
                Some(palette) => opaque(coloured(samples.into_iter(), palette)?),
                None => opaque(samples.iter().flat_map(|grey| [*grey; 3]).collect()),
            },
            Samples::Rgb => opaque(samples),
            Samples::Cmyk => opaque(quads.iter().flat_map(|ink| from_cmyk(*ink)).collect()),
            Samples::Rgba if !has_alpha => opaque(quads.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect()),
            Samples::GreyAlpha if !has_alpha => opaque(pairs.iter().flat_map(|&[grey, _]| [grey; 3]).collect()),
            Samples::Rgba => {
                let values = quads.iter().flat_map(|quad| pixel(*quad)).collect();
                RgbaImage::from_raw(width, height, values).map(Pixels::Transparent)
            }
            Samples::GreyAlpha => {
                let values = pairs.iter().flat_map(|&[grey, alpha]| pixel([grey, grey, grey, alpha])).collect();
                RgbaImage::from_raw(width, height, values).map(Pixels::Transparent)
            }
        }
    }
}

/// The colours of indices; `None` for one beyond the palette.
fn coloured(indices: impl Iterator<Item = u8>, palette: &[u16]) -> Option<Vec<u8>> {
    let count = palette.len() / 3;
    let mut values = Vec::new();
    for index in indices.map(usize::from) {
        let colour = [index, count + index, 2 * count + index].map(|at| palette.get(at));
        let [Some(red), Some(green), Some(blue)] = colour else { return None };
        values.extend([red, green, blue].map(|value| (value >> 8) as u8));
    }
    Some(values)
}

/// Colours that were multiplied with alpha, as they were before.
fn divided([red, green, blue, alpha]: [u8; 4]) -> [u8; 4] {
    let divide = |value: u8| match alpha {
        0 => 0,
        _ => (u32::from(value) * 255 / u32::from(alpha)).min(255) as u8,
    };
    [divide(red), divide(green), divide(blue), alpha]
}

fn failed(problem: impl Display) -> String {
    format!("no readable image: {problem}")
}
