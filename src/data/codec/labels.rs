//! Label maps: PNG files whose pixel values are labels, and the class lists that name them.
use super::photograph::{Orientation, exchanges_sides, upright};
use crate::system::file_kind;
use crate::system::guard::guarded;
use crate::system::json::read_json;
use crate::system::limits::{self, CLASSES, LABEL_MAP};
use crate::{Error, Result};
use image::DynamicImage;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::{fmt, io::Cursor, path::Path};

/// A decoded label map with packed samples as in the file.
pub struct LabelMap {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    bytes: Vec<u8>,
    bytes_per_row: usize,
    bits: usize,
    /// Samples of a pixel: 1 for grey or palette, 3 for RGB, one more with alpha.
    pub channels: usize,
    /// Of a palette.
    colours: Vec<[u8; 3]>,
}

/// What a map looks like, to somebody who does not know what its values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appearance {
    /// Black and white, with soft edges or without.
    BlackAndWhite,
    /// Several values.
    Labels,
    /// One value, or 0 and 1, which both kinds of map may have.
    Either,
}

/// The brightness from which on a pixel of a black-and-white map is in the mask.
const WHITE: u32 = 128;

/// Colours that differ by no more are grey, but for how they were converted.
const GREY_SPREAD: u8 = 24;

/// A soft edge has more grey levels than this, and a label map of one picture in general fewer labels.
const SOFT_LEVELS: usize = 8;

impl LabelMap {
    /// Decodes a PNG: grey or palette of 1 to 16 bits, whose samples (palette indices) are the labels, or 8-bit RGB,
    /// whose label is `R + 256·G + 65536·B` (COCO panoptic). Transparent pixels are 0. Other lossless formats are read, too.
    ///
    /// # Errors
    /// The file is damaged, too large, or of another kind (with the reason).
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let is_lossy = bytes.starts_with(&[0xff, 0xd8, 0xff])
            || bytes.starts_with(b"RIFF") && !bytes.windows(4).take(64).any(|four| four == b"VP8L");
        if is_lossy {
            return Err(
                "no readable PNG: a lossy format (JPEG, WebP) has other labels than were drawn; save the map as PNG"
                    .into(),
            );
        }
        if let Some(kind) = file_kind::of(bytes) {
            return Err(format!("no readable PNG: {kind}"));
        }
        match bytes.starts_with(b"\x89PNG") || image::guess_format(bytes).is_err() {
            true => guarded(|| Self::decode_png(bytes)).map_err(|problem| format!("no readable PNG: {problem}")),
            false => {
                guarded(|| Self::decode_other(bytes)).map_err(|problem| format!("no readable label map: {problem}"))
            }
        }
    }

    fn decode_png(png: &[u8]) -> Result<Self, String> {
        let problem = |problem: png::DecodingError| problem.to_string();
        let limits = png::Limits { bytes: limits::PNG_EXTRAS };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(png), limits);
        decoder.set_transformations(png::Transformations::IDENTITY);
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let mut reader = decoder.read_info().map_err(problem)?;
        let (size, info) = (reader.output_buffer_size(), reader.info());
        let pixels = (u64::from(info.width), u64::from(info.height));
        limits::check_picture(pixels, size.map(|size| size as u64), LABEL_MAP)?;
        let colours: Vec<[u8; 3]> = match (info.color_type, &info.palette) {
            (png::ColorType::Indexed, Some(colours)) => colours.as_chunks().0.to_vec(),
            _ => Vec::new(),
        };
        let mut bytes = limits::buffer(size.unwrap_or_default()).map_err(|problem| problem.to_string())?;
        let info = reader.next_frame(&mut bytes).map_err(problem)?;
        let channels = info.color_type.samples();
        let bits = info.bit_depth as usize;
        if channels > 2 && bits != 8 {
            return Err(format!("a label map of {channels} channels needs 8 bits each, not {bits}"));
        }
        let (width, height) = (info.width as usize, info.height as usize);
        if channels == 2 || channels == 4 {
            clear_transparent(&mut bytes, channels, bits / 8);
        }
        Ok(Self { width, height, bytes, bytes_per_row: info.line_size, bits, channels, colours })
    }

    /// A map in another lossless format that the crate `image` reads.
    fn decode_other(bytes: &[u8]) -> Result<Self, String> {
        let problem = |problem: image::ImageError| problem.to_string();
        let format = image::guess_format(bytes).map_err(problem)?;
        let reader = || image::ImageReader::with_format(Cursor::new(bytes), format);
        let (width, height) = reader().into_dimensions().map_err(problem)?;
        let pixels = u64::from(width) * u64::from(height);
        limits::check_picture((u64::from(width), u64::from(height)), pixels.checked_mul(8), LABEL_MAP)?;
        let map = reader().decode().map_err(problem)?;
        let (width, height) = (width as usize, height as usize);
        let (bytes, bits, channels) = match map {
            DynamicImage::ImageLuma8(map) => (map.into_raw(), 8, 1),
            DynamicImage::ImageLuma16(map) => (map.into_raw().into_iter().flat_map(u16::to_be_bytes).collect(), 16, 1),
            DynamicImage::ImageRgb8(map) => (map.into_raw(), 8, 3),
            DynamicImage::ImageRgba8(_) | DynamicImage::ImageLumaA8(_) => {
                let channels = usize::from(map.color().channel_count());
                let mut bytes = map.into_bytes();
                clear_transparent(&mut bytes, channels, 1);
                (bytes, 8, channels)
            }
            other => {
                return Err(format!("its pixels are {:?}, expected grey of 8 or 16 bits or RGB of 8", other.color()));
            }
        };
        let bytes_per_row = width * channels * bits / 8;
        Ok(Self { width, height, bytes, bytes_per_row, bits, channels, colours: Vec::new() })
    }

    /// How bright the value `label` looks, from 0 to 255.
    pub fn brightness(&self, label: u32) -> u32 {
        let of_colour = |[red, green, blue]: [u8; 3]| {
            (299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue)) / 1000
        };
        let [red, green, blue, _] = label.to_le_bytes();
        match self.colours.get(label as usize) {
            Some(colour) => of_colour(*colour),
            None if self.channels > 2 => of_colour([red, green, blue]),
            None => label * 255 / ((1 << self.bits) - 1),
        }
    }

    /// Whether values are white in this map: at least half as bright as white, or 1 where there are but 0 and 1.
    pub fn is_white(&self) -> impl Fn(u32) -> bool {
        let pixels = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y)));
        let largest = pixels.map(|(x, y)| self.get(x, y)).max().unwrap_or(0);
        let has_ones = self.colours.is_empty() && matches!(largest, 1 | 0x01_01_01);
        move |value| if has_ones { value != 0 } else { self.brightness(value) >= WHITE }
    }

    /// What the map looks like.
    pub fn appearance(&self) -> Appearance {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for (y, x) in (0..self.height).flat_map(|y| (0..self.width).map(move |x| (y, x))) {
            *counts.entry(self.get(x, y)).or_default() += 1;
        }
        let is_plain = self.colours.is_empty() && self.bits > 1;
        if counts.len() < 2 && !counts.keys().any(|value| self.brightness(*value) == 255)
            || is_plain && counts.keys().all(|value| *value < 2)
        {
            return Appearance::Either;
        }
        let looks: Vec<(u32, usize)> = counts.iter().map(|(value, count)| (self.brightness(*value), *count)).collect();
        let has = |wanted: &dyn Fn(u32) -> bool| looks.iter().any(|(level, _)| wanted(*level));
        let between = looks.iter().filter(|(level, _)| !matches!(level, 0 | 255));
        let (levels, pixels) = between.fold((0, 0), |(levels, pixels), (_, count)| (levels + 1, pixels + count));
        let is_grey = self.channels < 3 || counts.keys().all(|value| is_nearly_grey(*value));
        // Wide edges go all the way from black to white; numbers of things are few or dark.
        let is_wide = has(&|level| level == 0)
            && has(&|level| (1..WHITE).contains(&level))
            && has(&|level| (WHITE..255).contains(&level))
            && has(&|level| level == 255);
        let share = if is_wide { 2 } else { 5 };
        let is_soft = is_plain && is_grey && levels > SOFT_LEVELS && pixels * share < self.width * self.height;
        match levels == 0 || is_soft {
            true => Appearance::BlackAndWhite,
            false => Appearance::Labels,
        }
    }

    /// The map turned as a picture of this orientation is.
    pub fn upright(&self, orientation: Orientation) -> Self {
        // Samples of less than a byte are unpacked.
        let bytes_per_pixel = self.channels * self.bits.div_ceil(8);
        let pixel = |(x, y): (usize, usize)| match self.bits {
            ..8 => vec![self.get(x, y) as u8],
            _ => self.bytes[y * self.bytes_per_row + x * bytes_per_pixel..][..bytes_per_pixel].to_vec(),
        };
        let places: Vec<_> = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y))).collect();
        let bytes = upright(orientation, (self.width, self.height), &places).into_iter().flat_map(pixel).collect();
        let exchanged = exchanges_sides(orientation);
        let (width, height) = if exchanged { (self.height, self.width) } else { (self.width, self.height) };
        let (bytes_per_row, bits) = (width * bytes_per_pixel, self.bits.max(8));
        Self { width, height, bytes, bytes_per_row, bits, colours: self.colours.clone(), ..*self }
    }

    /// The label at (`x`, `y`), which must be inside.
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

/// Whether the three colours of a pixel are all but equal.
fn is_nearly_grey(pixel: u32) -> bool {
    let [red, green, blue, _] = pixel.to_le_bytes();
    red.max(green).max(blue) - red.min(green).min(blue) <= GREY_SPREAD
}

/// Sets pixels to 0 whose last channel, alpha, is less than half: a mask that was drawn on a transparent layer keeps the
/// layer's colour there. Channels have `depth` bytes, the highest first.
fn clear_transparent(bytes: &mut [u8], channels: usize, depth: usize) {
    for pixel in bytes.chunks_exact_mut(channels * depth) {
        if pixel[(channels - 1) * depth] < 128 {
            pixel.fill(0);
        }
    }
}

/// The segment id of pixels without a segment.
pub const VOID: u32 = 0;

/// What is wrong with another segment id that the annotations do not have.
pub const NO_SEGMENT: &str = "is no segment of its image";

/// What is wrong with a label that has no name in the class list `file`.
pub fn no_name(file: &Path) -> String {
    format!("has no name in {} and is not ignored (data.ignore, --ignore)", file.display())
}

/// Labels and their names as a file of classes has them, with those that come twice.
struct Names(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NamesVisitor).map(Self)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("classes: a JSON list of names or an object from label to name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        std::iter::from_fn(|| map.next_entry().transpose()).collect()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let names = std::iter::from_fn(|| list.next_element().transpose());
        names.enumerate().map(|(label, name)| Ok((label.to_string(), name?))).collect()
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

    /// Reads a JSON list of names, indexed by label, or an object from label to name.
    ///
    /// # Errors
    /// The file cannot be read, is neither, is empty, or has a label that is not a number or a name that is empty.
    pub fn read(path: &Path) -> Result<Self> {
        let Names(pairs) = read_json(path, CLASSES)?;
        let mut classes: BTreeMap<u32, String> = BTreeMap::new();
        for (label, name) in pairs {
            let number =
                label.trim().parse().map_err(|_| Error::file(path, format!("the label `{label}` is no number")))?;
            let name = name.as_str().map(str::trim).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| Error::file(path, format!("the name of label {label} is no text")))?;
            if let Some(other) = classes.insert(number, name.to_owned())
                && other != name
            {
                return Err(Error::file(path, format!("label {number} is both {other:?} and {name:?}")));
            }
        }
        if classes.is_empty() {
            return Err(Error::file(path, "there is no class"));
        }
        Ok(Self(classes))
    }

    /// The name of the class `label`; none where the list has no such label.
    pub fn name(&self, label: u32) -> Option<&str> {
        self.0.get(&label).map(String::as_str)
    }

    /// # Errors
    /// Two labels have one name.
    pub fn check_names(&self) -> Result<(), String> {
        let mut seen = BTreeMap::new();
        for (label, name) in self.iter() {
            if let Some(other) = seen.insert(name, label) {
                return Err(format!(
                    "labels {other} and {label} are both named {name:?}: no prompt can tell them apart"
                ));
            }
        }
        Ok(())
    }

    /// # Errors
    /// These names are not those of the `categories` of an annotations file, but for a name of label 0; the first
    /// difference.
    pub fn check_equal(&self, categories: &Self) -> Result<(), String> {
        let labels: BTreeSet<u32> = self.0.keys().chain(categories.0.keys()).copied().collect();
        let differing: Vec<u32> =
            labels.into_iter().filter(|label| self.name(*label) != categories.name(*label)).collect();
        let Some(&label) = differing.first() else { return Ok(()) };
        if differing == [0] && categories.name(0).is_none() {
            // A list has to name label 0, which annotations that count from 1 have no use for.
            return Ok(());
        }
        let name = |classes: &Self| classes.name(label).map_or("no class".into(), |name| format!("{name:?}"));
        let (own, other) = (name(self), name(categories));
        Err(format!(
            "label {label} is {own}, but the annotations' categories say {other}; leave data.classes out to take their \
             names, or set data.allow = [\"class_names\"]"
        ))
    }

    /// All pairs (label, name), by ascending label.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.iter().map(|(&label, name)| (label, name.as_str()))
    }
}

/// Encodes `labels` (`[height, width]`) as a PNG: indices of a palette of 256 colours, visible to a person, or 16-bit
/// grey if a label is above 255.
///
/// # Errors
/// A label is above 65535, or `labels` has another size.
pub fn encode_labels(width: usize, height: usize, labels: &[u32]) -> Result<Vec<u8>, String> {
    let side = |side: usize| u32::try_from(side).map_err(|problem| problem.to_string());
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, side(width)?, side(height)?);
    let bytes: Result<Vec<u8>, _> = labels.iter().map(|&label| u8::try_from(label)).collect();
    let pixels = match bytes {
        Ok(bytes) => {
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_palette((0..=255).flat_map(label_colour).collect::<Vec<u8>>());
            bytes
        }
        Err(_) => {
            encoder.set_color(png::ColorType::Grayscale);
            encoder.set_depth(png::BitDepth::Sixteen);
            let words: Result<Vec<u16>, _> = labels.iter().map(|&label| u16::try_from(label)).collect();
            let words = words.map_err(|_| "a label is above 65535, which a grey PNG cannot hold")?;
            words.into_iter().flat_map(u16::to_be_bytes).collect()
        }
    };
    let mut writer = encoder.write_header().map_err(|problem| problem.to_string())?;
    writer.write_image_data(&pixels).and_then(|()| writer.finish()).map_err(|problem| problem.to_string())?;
    Ok(png)
}

/// The colour of a label in PASCAL VOC's palette: the label's bits go to red, green and blue in rotation, into the
/// highest free bit.
pub fn label_colour(label: u8) -> [u8; 3] {
    std::array::from_fn(|channel| {
        (0..8)
            .map(|bit| (label >> bit & 1, bit))
            .filter(|(_, bit)| bit % 3 == channel)
            .fold(0, |colour, (set, bit)| colour | set << (7 - bit / 3))
    })
}
