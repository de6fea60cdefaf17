//! Label maps of the full ADE20K release: `*_seg.png`, whose red and green say what a pixel is.
use crate::data::codec::labels::LabelMap;
use crate::system::limits::CLASSES;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The label of what has no class.
pub const NONE: u32 = 65535;

/// The numbers of ADE20K's index that are classes.
#[derive(Clone, Debug)]
pub struct Numbers(BTreeMap<u32, u32>);

impl Numbers {
    /// Reads a JSON list: the place of a number is its label.
    ///
    /// # Errors
    /// The file cannot be read, is no such list, names a number twice, or has as many as a label map cannot hold.
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

    /// The labels of a `*_seg.png`, `[height, width]` after its width and height: a pixel's number is
    /// `red / 10 · 256 + green`; [`NONE`] where that is no class.
    ///
    /// # Errors
    /// Says what is wrong with the PNG.
    pub fn labels(&self, png: &[u8]) -> Result<(usize, usize, Vec<u32>), String> {
        let map = LabelMap::decode(png)?;
        if map.channels() < 3 {
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
