//! A mask as COCO's JSON stores it: run lengths or polygons.
use super::photograph::Orientation;
use super::{crop::Grid, mask::Mask, polygon, rle::RunLengths, rle::StoredRunLengths};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, de::value::MapAccessDeserializer};
use std::fmt;

/// Unchecked, as in JSON files.
#[derive(Serialize)]
#[serde(untagged)]
pub enum StoredMask {
    RunLengths(StoredRunLengths),
    /// Polygons, each `x, y, x, y, …`, whose union is the mask.
    Polygons(Vec<Vec<f64>>),
}

impl StoredMask {
    /// The mask's parts, of pictures of `width` × `height`.
    ///
    /// # Errors
    /// Those of [`StoredRunLengths::check`] and [`polygon::draw`]; run lengths of another size.
    pub fn parts(&self, (width, height): (usize, usize)) -> Result<MaskParts, String> {
        let parts = match self {
            Self::RunLengths(runs) => vec![runs.check()?],
            Self::Polygons(polygons) => {
                let draw = |polygon: &Vec<f64>| polygon::draw(height as u64, width as u64, polygon);
                polygons.iter().map(draw).collect::<Result<_, _>>()?
            }
        };
        Ok(MaskParts(parts))
    }
}

/// Checked masks of one size, whose union is one mask.
pub struct MaskParts(Vec<RunLengths>);

impl MaskParts {
    /// Width and height, of a mask with parts.
    pub fn size(&self) -> Option<(usize, usize)> {
        self.0.first().map(|part| (part.width(), part.height()))
    }

    /// The mask turned as a picture of this orientation is.
    ///
    /// # Errors
    /// Those of [`RunLengths::encode`].
    pub fn upright(&self, orientation: Orientation) -> Result<Self, String> {
        self.0.iter().map(|part| part.upright(orientation)).collect::<Result<_, _>>().map(Self)
    }

    /// Number of pixels among the points of `grid`.
    pub fn area_on(&self, grid: &Grid) -> usize {
        match self.0.as_slice() {
            [part] => part.area_on(grid),
            _ => self.sample(grid).area(),
        }
    }

    /// The mask at the points of `grid`.
    pub fn sample(&self, grid: &Grid) -> Mask {
        let mut mask = Mask::new(grid.width(), grid.height());
        self.add_to(&mut mask, grid);
        mask
    }

    /// Adds the mask to another on that grid.
    pub fn add_to(&self, mask: &mut Mask, grid: &Grid) {
        self.0.iter().for_each(|part| part.add_to(mask, grid));
    }
}

impl<'de> Deserialize<'de> for StoredMask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MaskVisitor)
    }
}

struct MaskVisitor;

impl<'de> Visitor<'de> for MaskVisitor {
    type Value = StoredMask;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("run lengths (`size` and `counts`) or a list of polygons")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StoredMask, A::Error> {
        StoredRunLengths::deserialize(MapAccessDeserializer::new(map)).map(StoredMask::RunLengths)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<StoredMask, A::Error> {
        let polygons = std::iter::from_fn(|| list.next_element().transpose()).collect::<Result<Vec<Vec<f64>>, _>>()?;
        match polygons.iter().any(Vec::is_empty) {
            true => Err(de::Error::custom("a polygon is empty")),
            false => Ok(StoredMask::Polygons(polygons)),
        }
    }
}
