//! The built-in sprites and their scaling.
use crate::system::error::{Error, Result};

/// A drawing style's name and its files, in the order of `NOUNS`.
type Style = (&'static str, [&'static [u8]; NOUNS.len()]);

macro_rules! style {
    ($style:literal: $($noun:literal)*) => {
        ($style, [$(include_bytes!(concat!("../../data/sprites/", $style, "/", $noun, ".png"))),*])
    };
}

/// The nouns, and the PNG of each in each style.
macro_rules! sprites {
    ($($noun:literal)*) => {
        pub const NOUNS: [&str; [$($noun),*].len()] = [$($noun),*];
        pub const TRAIN_STYLES: [Style; 4] = [
            style!("noto": $($noun)*),
            style!("noto-v1": $($noun)*),
            style!("fluent-emoji": $($noun)*),
            style!("fluent-emoji-flat": $($noun)*),
        ];
        pub const VAL_STYLES: [Style; 1] = [style!("twemoji": $($noun)*)];
    };
}

sprites! {
    "airplane" "apple" "banana" "boat" "bus" "butterfly" "car" "cat" "dog" "fish"
    "house" "lion" "mushroom" "octopus" "panda" "penguin" "pig" "rocket" "tree" "umbrella"
}

/// A square drawing, RGBA with premultiplied alpha, values from 0 to 1.
#[derive(Clone, Debug)]
pub struct Sprite {
    pub side: usize,
    /// `[side, side, 4]`
    pub pixels: Vec<f32>,
}

/// Sprites of these styles: `[style][noun]`, without their transparent margins.
///
/// # Errors
/// A sprite cannot be decoded.
pub fn load(styles: &[Style]) -> Result<Vec<Vec<Sprite>>> {
    styles.iter().map(|(style, files)| files.iter().map(|file| Sprite::decode(style, file)).collect()).collect()
}

impl Sprite {
    fn decode(style: &str, png: &[u8]) -> Result<Self> {
        let image = image::load_from_memory_with_format(png, image::ImageFormat::Png)
            .map_err(|e| Error::Failed(format!("sprite of {style}: {e}")))?
            .to_rgba8();
        let opaque = |x: u32, y: u32| image.get_pixel(x, y)[3] > 0;
        let (width, height) = image.dimensions();
        let columns: Vec<u32> = (0..width).filter(|&x| (0..height).any(|y| opaque(x, y))).collect();
        let rows: Vec<u32> = (0..height).filter(|&y| (0..width).any(|x| opaque(x, y))).collect();
        let (Some((&left, &right)), Some((&top, &bottom))) =
            (columns.first().zip(columns.last()), rows.first().zip(rows.last()))
        else {
            return Err(Error::Failed(format!("sprite of {style}: nothing but transparency")));
        };
        // The smallest square around the drawing, centred.
        let side = (right - left).max(bottom - top) + 1;
        let first_x = i64::from(left) - i64::from(side - (right - left + 1)) / 2;
        let first_y = i64::from(top) - i64::from(side - (bottom - top + 1)) / 2;
        let mut pixels = Vec::with_capacity((side * side * 4) as usize);
        for y in 0..i64::from(side) {
            for x in 0..i64::from(side) {
                let place = u32::try_from(first_x + x).ok().zip(u32::try_from(first_y + y).ok());
                let rgba = place.and_then(|(x, y)| image.get_pixel_checked(x, y)).map_or([0; 4], |pixel| pixel.0);
                let alpha = f32::from(rgba[3]) / 255.0;
                pixels.extend(rgba[..3].iter().map(|&value| f32::from(value) / 255.0 * alpha));
                pixels.push(alpha);
            }
        }
        Ok(Self { side: side as usize, pixels })
    }

    /// Resizes with area averaging.
    pub fn scaled(&self, side: usize) -> Self {
        let spans = spans(self.side, side);
        let mut rows = vec![0.0; self.side * side * 4];
        for y in 0..self.side {
            for (x, span) in spans.iter().enumerate() {
                for &(source, weight) in span {
                    for channel in 0..4 {
                        rows[(y * side + x) * 4 + channel] +=
                            weight * self.pixels[(y * self.side + source) * 4 + channel];
                    }
                }
            }
        }
        let mut pixels = vec![0.0; side * side * 4];
        for (y, span) in spans.iter().enumerate() {
            for &(source, weight) in span {
                for i in 0..side * 4 {
                    pixels[y * side * 4 + i] += weight * rows[source * side * 4 + i];
                }
            }
        }
        Self { side, pixels }
    }

    /// Flips horizontally.
    pub fn mirrored(&self) -> Self {
        let rows = self.pixels.chunks_exact(self.side * 4);
        let pixels = rows.flat_map(|row| row.chunks_exact(4).rev().flatten().copied()).collect();
        Self { side: self.side, pixels }
    }

    /// The pixel's alpha, from 0 to 1.
    pub fn alpha(&self, x: usize, y: usize) -> f32 {
        self.pixels[(y * self.side + x) * 4 + 3]
    }
}

/// For each of `to` pixels, the `from` pixels that it covers and their weights.
fn spans(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = from as f32 / to as f32;
    let span = |pixel: usize| {
        let (start, end) = (pixel as f32 * scale, (pixel + 1) as f32 * scale);
        let sources = start as usize..(end.ceil() as usize).min(from);
        let covered = |source: usize| end.min((source + 1) as f32) - start.max(source as f32);
        sources.map(|source| (source, covered(source) / scale)).collect()
    };
    (0..to).map(span).collect()
}
