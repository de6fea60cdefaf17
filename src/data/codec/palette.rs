//! Label maps of colours: which label a colour stands for.
use super::labels::label_colour;
use crate::config::Palette;
use crate::system::json::read_json;
use crate::system::limits::CLASSES;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// The colours of Cityscapes' classes, by their training label
/// (<https://github.com/mcordts/cityscapesScripts>, `labels.py`).
const CITYSCAPES: [[u8; 3]; 19] = [
    [128, 64, 128],
    [244, 35, 232],
    [70, 70, 70],
    [102, 102, 156],
    [190, 153, 153],
    [153, 153, 153],
    [250, 170, 30],
    [220, 220, 0],
    [107, 142, 35],
    [152, 251, 152],
    [70, 130, 180],
    [220, 20, 60],
    [255, 0, 0],
    [0, 0, 142],
    [0, 0, 70],
    [0, 60, 100],
    [0, 80, 100],
    [0, 0, 230],
    [119, 11, 32],
];

/// Colours, as `R + 256·G + 65536·B`, to labels.
pub struct Colours(BTreeMap<u32, u32>);

impl Colours {
    /// The table that `palette` names; pixels without class have the label `ignore`.
    ///
    /// # Errors
    /// Its file cannot be read, or is no object from colours (`#rrggbb`) to labels.
    pub fn of(palette: &Palette, ignore: u32) -> Result<Self> {
        let file = match palette {
            Palette::Voc => {
                let labels = (0..=20).map(|label| (value(label_colour(label)), u32::from(label)));
                return Ok(Self(labels.chain([(value([224, 224, 192]), ignore)]).collect()));
            }
            Palette::Cityscapes => {
                let labels = (0..).zip(CITYSCAPES).map(|(label, colour)| (value(colour), label));
                return Ok(Self(labels.chain([(0, ignore)]).collect()));
            }
            Palette::File(file) => file,
        };
        let named: BTreeMap<String, u32> = read_json(file, CLASSES)?;
        let parse = |(name, label): (String, u32)| {
            let digits = name.strip_prefix('#').filter(|digits| digits.len() == 6);
            let colour = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
            let problem = || Error::file(file, format!("{name:?} is no colour; expected one such as \"#8000ff\""));
            let [blue, green, red, _] = colour.ok_or_else(problem)?.to_le_bytes();
            Ok((value([red, green, blue]), label))
        };
        Ok(Self(named.into_iter().map(parse).collect::<Result<_>>()?))
    }

    /// The label of a colour.
    pub fn label(&self, colour: u32) -> Option<u32> {
        self.0.get(&colour).copied()
    }
}

fn value([red, green, blue]: [u8; 3]) -> u32 {
    u32::from_le_bytes([red, green, blue, 0])
}
