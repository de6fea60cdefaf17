//! Decoded pixels to 8-bit RGB in Pillow's arithmetic.
use image::{DynamicImage, Pixel, Rgb, RgbImage, Rgba, RgbaImage};

/// Pixels of any kind as 8-bit RGB, or as RGBA where they have alpha. Of colours of 16 bits the upper 8 count, as for
/// Pillow; grey is scaled, where Pillow's `convert("RGB")` would clip all above 255 to white.
pub(super) enum Pixels {
    Opaque(RgbImage),
    Transparent(RgbaImage),
}

impl From<DynamicImage> for Pixels {
    fn from(image: DynamicImage) -> Self {
        let upper = |value: u16| (value >> 8) as u8;
        let (width, height) = (image.width(), image.height());
        let opaque = |values: Vec<u8>| RgbImage::from_raw(width, height, values).map(Self::Opaque);
        let transparent = |values: Vec<u8>| RgbaImage::from_raw(width, height, values).map(Self::Transparent);
        let converted = match &image {
            DynamicImage::ImageRgb16(image) => opaque(image.as_raw().iter().copied().map(upper).collect()),
            DynamicImage::ImageLumaA16(image) => {
                let rgba = |&image::LumaA([grey, alpha]): &_| [upper(grey), upper(grey), upper(grey), upper(alpha)];
                transparent(image.pixels().flat_map(rgba).collect())
            }
            DynamicImage::ImageRgba16(image) => transparent(image.as_raw().iter().copied().map(upper).collect()),
            _ => None,
        };
        converted.unwrap_or_else(|| match image.color().has_alpha() {
            true => Self::Transparent(image.into_rgba8()),
            false => Self::Opaque(image.into_rgb8()),
        })
    }
}

impl Pixels {
    /// Puts transparent pixels over `background`.
    pub fn over(self, background: Rgb<u8>) -> RgbImage {
        match self {
            Self::Opaque(image) => image,
            Self::Transparent(image) => {
                let (width, height) = image.dimensions();
                let mut output = RgbImage::new(width, height);
                for (target, pixel) in output.pixels_mut().zip(image.pixels()) {
                    *target = composite(pixel, background);
                }
                output
            }
        }
    }

    /// Whether a pixel is not fully opaque.
    pub fn is_transparent(&self) -> bool {
        matches!(self, Self::Transparent(image) if image.pixels().any(|pixel| pixel.0[3] < 255))
    }
}

/// Pillow's `Image.alpha_composite` over an opaque colour (`AlphaComposite.c`): 7 bits beyond the 8, rounded division.
fn composite(pixel: &Rgba<u8>, background: Rgb<u8>) -> Rgb<u8> {
    let own = u32::from(pixel.0[3]) * 128;
    let other = 255 * 128 - own;
    let over_255 = |value: u32| ((value >> 8) + value) >> 8;
    let blend = |above: u8, below: u8| {
        let sum = u32::from(above) * own + u32::from(below) * other;
        (over_255(sum + (0x80 << 7)) >> 7) as u8
    };
    pixel.to_rgb().map2(&background, blend)
}

/// Pillow's CMYK to RGB (`Convert.c`), of ink from 0 to 255.
pub(in crate::data::codec) fn from_cmyk([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let light = 255 - u32::from(black);
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(ink) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}
