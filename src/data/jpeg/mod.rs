//! JPEG to RGB, to the bit as libjpeg-turbo decodes it, which Pillow and with it the PyTorch libraries use.
//!
//! Pure Rust decoders differ from it by up to 3 of 255 in one value of a hundred (another inverse DCT); through the
//! autoencoder that is 3·10⁻³ of a latent. Huffman-coded baseline and progressive files of 8 bits in grey, YCbCr or
//! RGB are decoded here, anything else is left to the crate `image`.
mod entropy;
mod header;
mod pixels;

use entropy::Scan;
use header::{Frame, Reader, Tables};
use image::RgbImage;

/// Pictures of more pixels are left to the crate `image` and its limits.
const MAX_PIXELS: usize = 1 << 27;

/// A JPEG's pixels; `None` for a kind or a damage that another decoder may know what to do with.
pub fn decode(bytes: &[u8]) -> Option<RgbImage> {
    let mut reader = Reader::start(bytes)?;
    let mut tables = Tables::default();
    let mut frame: Option<Frame> = None;
    loop {
        match reader.marker()? {
            0xc0..=0xc2 if frame.is_some() => return None,
            kind @ 0xc0..=0xc2 => frame = Some(Frame::read(reader.segment()?, kind == 0xc2)?),
            0xc4 => tables.read_huffman(reader.segment()?)?,
            0xdb => tables.read_quantisation(reader.segment()?)?,
            0xdd => tables.restart_interval = usize::from(header::big_endian(reader.segment()?, 0)?),
            0xda => {
                let frame = frame.as_mut()?;
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
