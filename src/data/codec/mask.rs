//! Binary masks at the training resolution, one bit a pixel.
use std::ops::Range;

/// A mask of `height` rows of `width` pixels; 128 KiB at 1024².
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    width: usize,
    height: usize,
    /// Row-major, rows padded to whole words; pixel `x` is bit `x % 64` of word `x / 64`.
    words: Vec<u64>,
    /// Index into `Sample::classes`; `None` for masks without class.
    pub class: Option<usize>,
}

impl Mask {
    /// An empty mask without class.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, words: vec![0; width.div_ceil(64) * height], class: None }
    }

    /// Pixels a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Whether pixel (`x`, `y`) is in the mask; false outside the image.
    pub fn get(&self, x: usize, y: usize) -> bool {
        x < self.width && y < self.height && self.words[y * self.width.div_ceil(64) + x / 64] >> (x % 64) & 1 == 1
    }

    /// Adds pixel (`x`, `y`), which must be inside the image.
    pub fn set(&mut self, x: usize, y: usize) {
        assert!(x < self.width && y < self.height, "({x}, {y}) lies outside {}×{}", self.width, self.height);
        self.words[y * self.width.div_ceil(64) + x / 64] |= 1 << (x % 64);
    }

    /// Adds a rectangle, which must be inside the image.
    pub fn fill(&mut self, columns: Range<usize>, rows: Range<usize>) {
        for y in rows {
            for x in columns.clone() {
                self.set(x, y);
            }
        }
    }

    /// Number of pixels in the mask.
    pub fn area(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The mask resized to `[grid_height, grid_width]`, zeros and ones: the pixel at `floor(index · size / grid)`
    /// (torch: `F.interpolate(mode="nearest")`).
    pub fn shrink_nearest(&self, grid_width: usize, grid_height: usize) -> Vec<f32> {
        let columns = nearest(self.width, grid_width);
        let rows = nearest(self.height, grid_height);
        rows.iter().flat_map(|&y| columns.iter().map(move |&x| f32::from(u8::from(self.get(x, y))))).collect()
    }
}

/// Source index of each of `count` outputs over `size` inputs, in f32 as torch computes it.
fn nearest(size: usize, count: usize) -> Vec<usize> {
    let scale = size as f32 / count as f32;
    (0..count).map(|index| ((index as f32 * scale) as usize).min(size.saturating_sub(1))).collect()
}
