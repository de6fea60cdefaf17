//! Scaling and cropping of a photograph and its masks to the square training image.
use super::resize::bilinear_window;
use crate::config::Crop;
use image::RgbImage;
use std::ops::Range;

/// The transform from photograph to square: either the shorter side is scaled to `side` and a window cut out, or both
/// sides are stretched to `side`; optionally mirrored.
///
/// `crop = "stretch"` resizes once, with antialiasing. The released code resizes twice, with Pillow until the shorter
/// side has 1024 pixels, then to 1024² with torch, which skips pixels where that shrinks further (by a third at most);
/// in between, it pads the batch with black to its largest photograph, and the padding is squeezed with the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    width: usize,
    height: usize,
    scaled_width: usize,
    scaled_height: usize,
    left: usize,
    top: usize,
    side: usize,
    /// Whether the image is mirrored left to right.
    pub mirror: bool,
}

/// The random draws of one photograph, each uniform in [0, 1).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Draws {
    /// Decides on mirroring.
    pub mirror: f64,
    /// Place of a random window between the left edge and the right.
    pub left: f64,
    /// Place of a random window between the top edge and the bottom.
    pub top: f64,
    /// Decides on leaving the caption empty.
    pub drop_caption: f64,
}

impl Placement {
    /// For a photograph of `width` × `height`. Sizes and centre window are torchvision's (`Resize`, `CenterCrop`); a
    /// random window is uniform over all offsets.
    pub fn new((width, height): (usize, usize), side: usize, crop: Crop, flip: bool, draws: &Draws) -> Self {
        let shorter = width.min(height).max(1);
        let scale = |size: usize| match crop {
            Crop::Center | Crop::Random => (side * size / shorter).max(side),
            Crop::Stretch => side,
        };
        let (scaled_width, scaled_height) = (scale(width), scale(height));
        let offset = |slack: usize, draw: f64| match crop {
            // A stretched square has no slack.
            Crop::Center | Crop::Stretch => (slack as f64 / 2.0).round_ties_even() as usize,
            Crop::Random => ((draw * (slack + 1) as f64) as usize).min(slack),
        };
        let left = offset(scaled_width - side, draws.left);
        let top = offset(scaled_height - side, draws.top);
        let mirror = flip && draws.mirror < 0.5;
        Self { width, height, scaled_width, scaled_height, left, top, side, mirror }
    }

    /// A placement without random draws: the flip is given, and a random window is placed at the upper left.
    pub fn fixed(size: (usize, usize), side: usize, crop: Crop, mirror: bool) -> Self {
        Self::new(size, side, crop, mirror, &Draws::default())
    }

    /// Cuts the square out of the photograph (`[side, side, 3]`): bilinear with antialiasing, bit-exact with Pillow's
    /// `resize(…, BILINEAR)` and `crop`.
    ///
    /// # Errors
    /// The photograph has another size than this placement.
    pub fn apply(&self, photograph: &RgbImage) -> Result<Vec<u8>, String> {
        let (width, height) = photograph.dimensions();
        if (width as usize, height as usize) != (self.width, self.height) {
            return Err(format!("{width}×{height} pixels, expected {}×{}", self.width, self.height));
        }
        let window = |start: usize| start as u32..(start + self.side) as u32;
        let size = (self.scaled_width as u32, self.scaled_height as u32);
        let mut square = bilinear_window(photograph, size, window(self.left), window(self.top));
        if self.mirror {
            image::imageops::flip_horizontal_in_place(&mut square);
        }
        Ok(square.into_raw())
    }

    /// The points at which a mask of the photograph's size is sampled: nearest to each pixel's centre (Pillow's
    /// `NEAREST`, torch's `nearest-exact`).
    pub fn grid(&self) -> Grid {
        Grid {
            columns: SampledAxis::new(self.width, self.scaled_width, self.left, self.side),
            rows: SampledAxis::new(self.height, self.scaled_height, self.top, self.side),
            mirror: self.mirror,
        }
    }
}

/// The source pixel of each pixel of the square.
#[derive(Clone, Debug)]
pub struct Grid {
    columns: SampledAxis,
    rows: SampledAxis,
    mirror: bool,
}

impl Grid {
    /// Pixels a row.
    pub fn width(&self) -> usize {
        self.columns.sources.len()
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.rows.sources.len()
    }

    /// The photograph's (x, y) sampled at (`x`, `y`) of the square.
    pub fn source(&self, x: usize, y: usize) -> (usize, usize) {
        let x = if self.mirror { self.width() - 1 - x } else { x };
        (self.columns.sources[x], self.rows.sources[y])
    }

    /// The square's columns sampled from column `source` of the photograph.
    pub fn columns_of(&self, source: usize) -> Range<usize> {
        let range = self.columns.outputs(source, source + 1);
        if self.mirror { self.width() - range.end..self.width() - range.start } else { range }
    }

    /// The square's rows sampled from rows `start..end` of the photograph.
    pub fn rows_of(&self, start: usize, end: usize) -> Range<usize> {
        self.rows.outputs(start, end)
    }
}

/// One axis of a grid, in both directions.
#[derive(Clone, Debug)]
struct SampledAxis {
    /// Source index of each output; ascending.
    sources: Vec<usize>,
    /// For each source index up to one past the last: number of outputs sampled from smaller ones.
    before: Vec<usize>,
}

impl SampledAxis {
    fn new(size: usize, scaled: usize, offset: usize, side: usize) -> Self {
        // floor((output + ½) · size / scaled), in integers
        let source = |output: usize| (((2 * (offset + output) + 1) * size) / (2 * scaled)).min(size - 1);
        let sources: Vec<usize> = (0..side).map(source).collect();
        let mut before = vec![0; size + 1];
        for &source in &sources {
            before[source + 1] += 1;
        }
        for index in 1..before.len() {
            before[index] += before[index - 1];
        }
        Self { sources, before }
    }

    fn outputs(&self, start: usize, end: usize) -> Range<usize> {
        self.before[start]..self.before[end]
    }
}
