//! The demo's scenes: sprites on textured backgrounds, with captions and masks.
//!
//! A scene depends on the seed, the split, the size and its number alone.
mod background;
mod draw;
mod place;
mod sprites;
mod write;

use rand_chacha::ChaCha8Rng;
use std::fmt;

pub use write::{draw_missing, write_missing};

/// Which drawing styles a scene's objects may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Split {
    /// The four styles to train on.
    Train,
    /// The style that training never sees.
    Val,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
        })
    }
}

/// Parameters of a set of scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SceneOptions {
    /// Seed of all scenes.
    pub seed: u64,
    /// Which drawing styles the scenes have.
    pub split: Split,
    /// Side in pixels.
    pub size: usize,
}

impl SceneOptions {
    fn random(&self, number: u64) -> ChaCha8Rng {
        crate::data::order::keyed(self.seed, crate::data::order::Purpose::Scene, self.split as u64, number)
    }
}

/// The class names by label: objects, then backgrounds.
pub fn class_names() -> Vec<&'static str> {
    sprites::NOUNS.into_iter().chain(background::BACKGROUNDS.iter().map(|background| background.name)).collect()
}
