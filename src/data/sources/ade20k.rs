//! Label maps of the full ADE20K release: `*_seg.png`, whose red and green channels encode the object class.
use crate::data::codec::labels::LabelMap;
use crate::system::limits::CLASSES;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The label of pixels without class.
pub const NONE: u32 = 65535;

/// Maps class numbers of ADE20K's index to labels.
#[derive(Clone, Debug)]
pub struct Numbers(BTreeMap<u32, u32>);

impl Numbers {
    /// Reads a JSON list of class numbers; a number's position is its label.
    ///
    /// # Errors
    /// The file cannot be read, is not a list of numbers, repeats a number, or is longer than a 16-bit label
    /// map allows.
    pub fn read(file: &Path) -> Result<Self> {
        let text = CLASSES.read_text(file).map_err(|problem| Error::file(file, problem))?;
        let list: Vec<u32> = serde_json::from_str(&text)
            .map_err(|problem| Error::file(file, format!("expected a JSON list of numbers: {problem}")))?;
        if list.is_empty() || list.len() >= NONE as usize {
            return Err(Error::file(file, format!("has {} numbers, expected 1 to {}", list.len(), NONE - 1)));
        }
        let mut labels = BTreeMap::new();
        for (label, number) in (0..).zip(list) {
            if labels.insert(number, label).is_some() {
                return Err(Error::file(file, format!("has the number {number} twice")));
            }
        }
        Ok(Self(labels))
    }

    /// Width, height and labels (`[height, width]`) of a `*_seg.png`: a pixel's class number is `red / 10 · 256 +
    /// green`, and its label is [`NONE`] if the number is not in the list.
    ///
    /// # Errors
    /// The PNG is damaged or grey (with the reason).
    pub fn labels(&self, png: &[u8]) -> Result<(usize, usize, Vec<u32>), String> {
        let map = LabelMap::decode(png)?;
        if map.channels < 3 {
            return Err("is a grey PNG, expected the red, green and blue of ADE20K".into());
        }
        let label = |x, y| {
            let [red, green, ..] = map.get(x, y).to_le_bytes().map(u32::from);
            self.0.get(&(red / 10 * 256 + green)).copied().unwrap_or(NONE)
        };
        let labels = (0..map.height).flat_map(|y| (0..map.width).map(move |x| (x, y)));
        Ok((map.width, map.height, labels.map(|(x, y)| label(x, y)).collect()))
    }
}
