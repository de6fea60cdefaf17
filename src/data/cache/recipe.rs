//! Recipes: what a cached value depends on, and the keys derived from it.
use crate::data::codec::photograph::{Orientation, PictureHeader};
use image::Rgb;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// How entries of one kind are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// `latents` of images or `text` embeddings: prefix of the shards' file names, and value of their metadata key `holds`.
    pub kind: &'static str,
    /// Everything that an entry depends on besides its image or prompt, by name: fingerprints of models, sizes, rules.
    /// Part of every key, and stored in every shard's metadata, so that an error can name what differs.
    pub facts: BTreeMap<String, String>,
    /// Name and shape of an entry's f32 tensors, sorted by name.
    pub tensors: Vec<(&'static str, Vec<usize>)>,
}

impl Recipe {
    /// Number of values in an entry.
    pub fn values(&self) -> usize {
        self.tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Bytes in an entry.
    pub fn bytes(&self) -> u64 {
        4 * self.values() as u64
    }

    /// The key of the latents of an image file.
    pub fn latents_key(&self, image: &Digest, mirrored: bool) -> Key {
        self.key(&[&image.0, &[u8::from(mirrored)]])
    }

    /// The key of a prompt's embedding.
    pub fn text_key(&self, prompt: &str) -> Key {
        self.key(&[prompt.as_bytes()])
    }

    fn key(&self, content: &[&[u8]]) -> Key {
        let mut hash = Sha256::new();
        // Each part is preceded by its length, so that different lists of parts never give equal bytes.
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(self.kind.as_bytes());
        for (name, value) in &self.facts {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        add(b"");
        content.iter().for_each(|part| add(part));
        Key(hash.finalize().into())
    }
}

/// SHA-256 of what the pixels of an image depend on.
pub struct Digest([u8; 32]);

impl Digest {
    /// Of a file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of an image file: of its bytes alone, but for pictures that were once decoded otherwise. Those that are turned, have
    /// alpha or are of inks have keys of their own, so that an older cache is not taken for what they are now.
    pub fn of_picture(bytes: &[u8], header: &PictureHeader, background: Rgb<u8>) -> Self {
        let file = Self::of(bytes);
        let PictureHeader { orientation, has_alpha, is_cmyk, .. } = *header;
        if orientation == Orientation::NoTransforms && !has_alpha && !is_cmyk {
            return file;
        }
        let mut hash = Sha256::new();
        hash.update(file.0);
        hash.update([orientation.to_exif(), u8::from(is_cmyk)]);
        hash.update(if has_alpha { &background.0[..] } else { &[] });
        Self(hash.finalize().into())
    }
}

/// The key of an entry (SHA-256).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Hexadecimal, the name of the entry in its shard.
    pub fn name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The inverse of [`Self::name`].
    pub fn parse(name: &str) -> Option<Self> {
        let mut key = [0; 32];
        if name.len() != 64 || !name.is_ascii() {
            return None;
        }
        for (place, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(name.get(2 * place..2 * place + 2)?, 16).ok()?;
        }
        Some(Self(key)).filter(|key| key.name() == name)
    }

    /// The first 16 bytes. Among 2⁴⁰ entries, two collide with a probability below 10⁻¹⁴.
    pub(super) fn short(&self) -> u128 {
        self.0[..16].iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(facts: &[(&str, &str)]) -> Recipe {
        let facts = facts.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Recipe { kind: "latents", facts, tensors: vec![("latents", vec![2, 3])] }
    }

    #[test]
    fn keys_depend_on_everything_that_an_entry_does() {
        let usual = recipe(&[("autoencoder", "a"), ("resolution", "64")]);
        let image = Digest::of(b"an image");
        let keys = [
            usual.latents_key(&image, false),
            usual.latents_key(&image, true),
            usual.latents_key(&Digest::of(b"an imagf"), false),
            recipe(&[("autoencoder", "b"), ("resolution", "64")]).latents_key(&image, false),
            recipe(&[("autoencoder", "a"), ("resolution", "65")]).latents_key(&image, false),
            recipe(&[("autoencoder", "ar"), ("esolution", "64")]).latents_key(&image, false),
            recipe(&[("autoencoder", "a")]).latents_key(&image, false),
            usual.text_key("an image"),
            usual.text_key(""),
            Recipe { kind: "text", ..usual.clone() }.text_key(""),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert!(keys.iter().all(|key| Key::parse(&key.name()) == Some(*key)));
        assert_eq!(usual.latents_key(&Digest::of(b"an image"), false), keys[0]);
        let header = |exif, has_alpha, is_cmyk| PictureHeader {
            size: (1, 1),
            orientation: Orientation::from_exif(exif).unwrap(),
            has_alpha,
            is_cmyk,
        };
        let key = |header: PictureHeader, grey: u8| {
            usual.latents_key(&Digest::of_picture(b"an image", &header, Rgb([grey; 3])), false)
        };
        assert_eq!(key(header(1, false, false), 255), keys[0]);
        let pictures = [
            keys[0],
            key(header(6, false, false), 255),
            key(header(8, false, false), 255),
            key(header(1, true, false), 255),
            key(header(1, true, false), 0),
            key(header(1, false, true), 255),
        ];
        assert_eq!(pictures.iter().collect::<std::collections::BTreeSet<_>>().len(), pictures.len());
        assert_eq!(key(header(6, false, false), 0), pictures[1]);
        assert_eq!(Key::parse(&keys[0].name().to_uppercase()), None);
        assert_eq!(Key::parse("+f"), None);
        assert_eq!(format!("{:032x}", keys[0].short()), keys[0].name()[..32]);
    }
}
