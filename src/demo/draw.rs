//! Draws one scene: picture, caption and label map.
use super::background::BACKGROUNDS;
use super::place::{SpritePlace, places};
use super::sprites::{self, NOUNS, Sprite, TRAIN_STYLES, VAL_STYLES};
use super::{SceneOptions, Split};
use crate::system::error::{Error, Result};
use image::RgbImage;
use rand::Rng;
use rand::seq::index;

/// Least alpha of a pixel that is labelled as the object.
const OPAQUE: f32 = 0.5;

/// A picture with its caption and label map.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The picture, RGB.
    pub image: RgbImage,
    /// For example "a cat and a bus on the grass".
    pub caption: String,
    /// The class of each pixel, `[size, size]`; indices into `class_names`.
    pub labels: Vec<u8>,
}

/// Draws the scenes of one split.
pub struct Drawer {
    /// What the scenes are drawn from.
    pub(super) options: SceneOptions,
    /// `[style][noun]`
    sprites: Vec<Vec<Sprite>>,
}

impl Drawer {
    /// # Errors
    /// `Error::Usage` if the size is out of range.
    pub fn new(options: SceneOptions) -> Result<Self> {
        if !(16..=1024).contains(&options.size) {
            return Err(Error::Usage(format!("scenes of {} pixels: expected 16 to 1024", options.size)));
        }
        let sprites = match options.split {
            Split::Train => sprites::load(&TRAIN_STYLES)?,
            Split::Val => sprites::load(&VAL_STYLES)?,
        };
        Ok(Self { options, sprites })
    }

    /// Draws scene `number`; it depends on the options and the number alone.
    pub fn draw(&self, number: u64) -> Result<Scene> {
        let size = self.options.size;
        let mut random = self.options.random(number);
        let set = &self.sprites[random.random_range(0..self.sprites.len())];
        let background = random.random_range(0..BACKGROUNDS.len());
        let count = match random.random_range(0..100) {
            0..40 => 1,
            40..90 => 2,
            _ => 3,
        };
        let nouns = index::sample(&mut random, NOUNS.len(), count).into_vec();
        let places = places(count, size, &mut random);
        let mut pixels = BACKGROUNDS[background].paint(size, &mut random);
        let mut labels = vec![(NOUNS.len() + background) as u8; size * size];
        for (&noun, place) in nouns.iter().zip(&places) {
            let sprite = set[noun].scaled(place.side);
            let sprite = if place.mirrored { sprite.mirrored() } else { sprite };
            paste(&sprite, place, noun as u8, size, &mut pixels, &mut labels);
        }
        let bytes = pixels.iter().map(|value| value.round().clamp(0.0, 255.0) as u8).collect();
        let image = RgbImage::from_raw(size as u32, size as u32, bytes)
            .ok_or_else(|| Error::Failed(format!("a scene of {size} pixels does not fit into memory")))?;
        let names: Vec<&str> = nouns[..places.len()].iter().map(|&noun| NOUNS[noun]).collect();
        Ok(Scene { image, caption: caption(&names, BACKGROUNDS[background].phrase), labels })
    }
}

fn paste(sprite: &Sprite, place: &SpritePlace, label: u8, size: usize, pixels: &mut [f32], labels: &mut [u8]) {
    for y in 0..place.side {
        for x in 0..place.side {
            let at = (place.top + y) * size + place.left + x;
            let alpha = sprite.alpha(x, y);
            let colour = &sprite.pixels[(y * sprite.side + x) * 4..];
            for (pixel, &value) in pixels[at * 3..at * 3 + 3].iter_mut().zip(colour) {
                *pixel = *pixel * (1.0 - alpha) + value * 255.0;
            }
            if alpha >= OPAQUE {
                labels[at] = label;
            }
        }
    }
}

/// For example "a cat, an apple and a bus on the grass".
fn caption(names: &[&str], place: &str) -> String {
    let thing = |name: &&str| {
        let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        format!("{article} {name}")
    };
    let things: Vec<String> = names.iter().map(thing).collect();
    match things.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} and {last} {place}", first.join(", ")),
        _ => format!("{} {place}", things.join("")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_plain_english() {
        assert_eq!(caption(&["cat"], "on the grass"), "a cat on the grass");
        assert_eq!(caption(&["apple", "bus"], "at night"), "an apple and a bus at night");
        assert_eq!(caption(&["cat", "umbrella", "bus"], "in the sea"), "a cat, an umbrella and a bus in the sea");
    }
}
