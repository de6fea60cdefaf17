//! Label maps: PNG files whose pixels are numbers, and the class lists that name them.
use crate::{Error, Result};
use serde_json::Value;
use std::{collections::BTreeMap, io::Cursor, path::Path};

/// Largest PNG that is decoded, in bytes of its decoded form.
const LARGEST_MAP: usize = 512 << 20;

/// A decoded label map; rows of packed samples as the file has them.
pub struct LabelMap {
    pub width: usize,
    pub height: usize,
    bytes: Vec<u8>,
    bytes_per_row: usize,
    bits: usize,
    channels: usize,
}

impl LabelMap {
    /// From a PNG: grey or palette of 1 to 16 bits, whose samples (palette indices) are the labels, or 8-bit RGB,
    /// whose label is `R + 256·G + 65536·B` (COCO panoptic); alpha is left out.
    ///
    /// # Errors
    /// Says what is wrong with the PNG.
    pub fn decode(png: &[u8]) -> Result<Self, String> {
        let problem = |problem: png::DecodingError| format!("no readable PNG: {problem}");
        let limits = png::Limits { bytes: LARGEST_MAP };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(png), limits);
        decoder.set_transformations(png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().map_err(problem)?;
        let size = reader.output_buffer_size().filter(|&size| size <= LARGEST_MAP).ok_or("the PNG is too large")?;
        let mut bytes = vec![0; size];
        let info = reader.next_frame(&mut bytes).map_err(problem)?;
        let channels = info.color_type.samples();
        let bits = info.bit_depth as usize;
        if channels > 2 && bits != 8 {
            return Err(format!("a label map of {channels} channels needs 8 bits each, not {bits}"));
        }
        let (width, height) = (info.width as usize, info.height as usize);
        Ok(Self { width, height, bytes, bytes_per_row: info.line_size, bits, channels })
    }

    /// The label at (`x`, `y`), which must lie inside.
    pub fn get(&self, x: usize, y: usize) -> u32 {
        let row = &self.bytes[y * self.bytes_per_row..];
        let sample = x * self.channels;
        match (self.channels, self.bits) {
            (3.., _) => u32::from_le_bytes([row[sample], row[sample + 1], row[sample + 2], 0]),
            (_, 8) => u32::from(row[sample]),
            (_, 16) => u32::from(u16::from_be_bytes([row[2 * sample], row[2 * sample + 1]])),
            (_, bits) => {
                let shift = 8 - bits - sample * bits % 8;
                u32::from(row[sample * bits / 8] >> shift) & ((1 << bits) - 1)
            }
        }
    }
}

/// The names of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes(BTreeMap<u32, String>);

impl Classes {
    /// From pairs of label and name.
    pub fn new(names: impl IntoIterator<Item = (u32, String)>) -> Self {
        Self(names.into_iter().collect())
    }

    /// Reads a JSON list of names, the index being the label, or an object from label to name.
    ///
    /// # Errors
    /// When the file cannot be read, or is neither, or has a label that is no number, an empty name, or no name.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|problem| Error::file(path, problem))?;
        let value: Value = serde_json::from_str(&text).map_err(|problem| Error::file(path, problem))?;
        let pairs: Vec<(String, Value)> = match value {
            Value::Array(names) => {
                names.into_iter().enumerate().map(|(label, name)| (label.to_string(), name)).collect()
            }
            Value::Object(names) => names.into_iter().collect(),
            _ => return Err(Error::file(path, "classes are a JSON list of names or an object from label to name")),
        };
        let mut classes = BTreeMap::new();
        for (label, name) in pairs {
            let number = label.parse().map_err(|_| Error::file(path, format!("the label `{label}` is no number")))?;
            let name = name.as_str().map(str::trim).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| Error::file(path, format!("the name of label {label} is no text")))?;
            classes.insert(number, name.to_owned());
        }
        if classes.is_empty() {
            return Err(Error::file(path, "there is no class"));
        }
        Ok(Self(classes))
    }

    pub fn name(&self, label: u32) -> Option<&str> {
        self.0.get(&label).map(String::as_str)
    }

    /// All (label, name), labels ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.iter().map(|(&label, name)| (label, name.as_str()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
