//! Images as files and tensors, equal to diffusers' `VaeImageProcessor` and Pillow.
use crate::data::codec::photograph::{self, PictureHeader};
use crate::data::codec::resize::bilinear;
use crate::system::error::{Error, Result};
use crate::system::limits::IMAGE_FILE;
use crate::system::whole_file::write_atomically;
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use image::codecs::png::PngEncoder;
use std::path::Path;

/// Images in [−1, 1], `[batch, 3, height, width]`, to 8-bit RGB: `round(255 · clamp(x/2 + 1/2, 0, 1))`.
pub fn to_rgb8(images: &Tensor) -> Result<Vec<RgbImage>> {
    let (batch, channels, height, width) = images.dims4()?;
    if channels != 3 {
        return Err(Error::Failed(format!("a picture of {channels} channels, expected 3")));
    }
    let pixels = images.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?.flatten_all()?;
    let bytes: Vec<u8> = pixels.to_vec1::<f32>()?.into_iter().map(quantise).collect();
    (0..batch)
        .map(|index| {
            let size = height * width * 3;
            RgbImage::from_raw(width as u32, height as u32, bytes[index * size..][..size].to_vec())
                .ok_or_else(|| Error::Failed(format!("a picture of {width}×{height}")))
        })
        .collect()
}

fn quantise(value: f32) -> u8 {
    // numpy rounds halves to even.
    ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// Writes an image as PNG, atomically.
pub fn write_png(file: &Path, image: &RgbImage) -> Result<()> {
    let mut bytes = Vec::new();
    image.write_with_encoder(PngEncoder::new(&mut bytes)).map_err(|e| Error::file(file, e))?;
    write_atomically(file, |out| out.write_all(&bytes))
}

/// Reads a picture of any format as 8-bit RGB, upright, over white.
pub fn read_rgb8(file: &Path) -> Result<RgbImage> {
    Ok(read_with_header(file)?.0)
}

/// [`read_rgb8`], and what the header says of how it was turned, for its masks.
pub fn read_with_header(file: &Path) -> Result<(RgbImage, PictureHeader)> {
    let bytes = IMAGE_FILE.read(file).map_err(|e| Error::file(file, e))?;
    let read = photograph::decode(&bytes).and_then(|image| Ok((image, photograph::header(&bytes)?)));
    read.map_err(|e| Error::file(file, e))
}

/// An image in [−1, 1]: `[1, 3, height, width]`, f32.
pub fn to_tensor(image: &RgbImage, device: &Device) -> Result<Tensor> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels: Vec<f32> = image.as_raw().iter().map(|&byte| f32::from(byte) / 255.0 * 2.0 - 1.0).collect();
    let pixels = Tensor::from_vec(pixels, (1, height, width, 3), device)?;
    Ok(pixels.permute((0, 3, 1, 2))?.contiguous()?)
}

/// Reads a picture and resizes it bilinearly to a square, in [−1, 1]: `[1, 3, size, size]`, f32.
pub fn read_square(file: &Path, size: usize, device: &Device) -> Result<Tensor> {
    let side = u32::try_from(size).map_err(|_| Error::Usage(format!("size {size} is too large")))?;
    to_tensor(&bilinear(&read_rgb8(file)?, side, side), device)
}
