//! JPEG to RGB, to the bit as libjpeg-turbo decodes it, which Pillow and with it the PyTorch libraries use.
//!
//! Pure Rust decoders differ from it by up to 3 of 255 in one value of a hundred (another inverse DCT); through the
//! autoencoder that is 3·10⁻³ of a latent. Huffman-coded baseline and progressive files of 8 bits in grey, YCbCr or
//! RGB are decoded here, anything else is left to the crate `image`.
mod entropy;
mod header;
mod inverse_dct;
mod pixels;

use entropy::Scan;
use header::{Frame, Reader, Tables};
use image::RgbImage;

/// Pictures of more pixels are left to the crate `image` and its limits (Pillow warns from here on). Decoding takes
/// up to 12 bytes a pixel.
const MAX_PIXELS: usize = 89_478_485;
/// Files of more scans are made to keep decoders busy; encoders write about ten.
const MAX_SCANS: usize = 500;

/// A JPEG's pixels; `None` for a kind or a damage that another decoder may know what to do with. Memory is bounded by
/// the length of the file, whatever size its header claims.
pub fn decode(bytes: &[u8]) -> Option<RgbImage> {
    let mut reader = Reader::start(bytes)?;
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
            0xe0 => tables.read_jfif(reader.segment()?),
            // Application data and comments; not the other kinds of frame, nor arithmetic coding.
            0xe1..=0xed | 0xef | 0xfe => drop(reader.segment()?),
            _ => return None,
        }
    }
    pixels::picture(&frame?, &tables)
}
