//! JPEG to RGB, bit-exact with libjpeg-turbo, the decoder of Pillow and so of PyTorch data pipelines.
//!
//! Pure Rust decoders use another inverse DCT and differ by up to 3 of 255 in one value of a hundred, which changes
//! latents by 3·10⁻³. Huffman-coded 8-bit baseline and progressive files in grey, YCbCr, RGB, CMYK or YCCK are decoded
//! here, all others by the crate `image`.
mod entropy;
mod header;
mod huffman;
mod inverse_dct;
mod pixels;

use entropy::Scan;
use header::{Frame, SegmentReader, Tables};
use image::RgbImage;

/// Encoders write about ten scans; files with more than this are made to exhaust decoders.
const MAX_SCANS: usize = 500;

/// The marker and content of each application segment before the first scan: `0xe0` (JFIF), `0xe1` (EXIF, XMP), …
pub(super) fn application_segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut reader = SegmentReader::start(bytes);
    let segments = std::iter::from_fn(move || {
        let reader = reader.as_mut()?;
        match reader.marker()? {
            0xd9 | 0xda => None,
            marker => Some((marker, reader.segment()?)),
        }
    });
    segments.filter(|(marker, _)| (0xe0..=0xef).contains(marker))
}

/// Width, height and number of colour components, from the first frame header.
pub(super) fn frame_size(bytes: &[u8]) -> Option<(u32, u32, u8)> {
    let mut reader = SegmentReader::start(bytes)?;
    loop {
        match reader.marker()? {
            0xc4 | 0xc8 | 0xcc => drop(reader.segment()?),
            0xc0..=0xcf => {
                let segment = reader.segment()?;
                let [height, width] = [header::big_endian(segment, 1)?, header::big_endian(segment, 3)?];
                return Some((width.into(), height.into(), *segment.get(5)?));
            }
            0xd9 | 0xda => return None,
            _ => drop(reader.segment()?),
        }
    }
}

/// Decodes a JPEG; `None` for files to be tried with another decoder, of another kind or damaged. Memory is bounded by
/// the length of the file, not by the size in its header.
pub fn decode(bytes: &[u8]) -> Option<RgbImage> {
    let mut reader = SegmentReader::start(bytes)?;
    let mut tables = Tables::default();
    let mut frame: Option<Frame> = None;
    let mut scans = 0;
    loop {
        match reader.marker()? {
            0xc0..=0xc2 if frame.is_some() => return None,
            kind @ 0xc0..=0xc2 => {
                let segment = reader.segment()?;
                frame = Some(Frame::read(segment, kind == 0xc2, reader.rest().len())?);
            }
            0xc4 => tables.read_huffman(reader.segment()?)?,
            0xdb => tables.read_quantisation(reader.segment()?)?,
            0xdd => tables.restart_interval = usize::from(header::big_endian(reader.segment()?, 0)?),
            0xda => {
                scans += 1;
                let frame = frame.as_mut().filter(|_| scans <= MAX_SCANS)?;
                let scan = Scan::read(reader.segment()?, frame, &tables)?;
                reader.skip(scan.run(reader.rest(), frame, &tables)?);
            }
            0xd9 => break,
            0xee => tables.read_adobe(reader.segment()?),
            0xe0 => tables.jfif |= reader.segment()?.starts_with(b"JFIF\0"),
            // Application data and comments; other frame types and arithmetic coding are refused.
            0xe1..=0xed | 0xef | 0xfe => drop(reader.segment()?),
            _ => return None,
        }
    }
    pixels::picture(&frame?, &tables)
}
