//! COCO run-length encoding: a binary mask as run lengths in column-major order, background first.
//!
//! Run lengths come as a list, or as pycocotools' compressed text (`maskApi.c`: `rleToString`, `rleFrString`). Masks
//! are sampled from the runs directly, without the full-size bitmap.
use super::photograph::{Orientation, exchanges_sides, upright};
use super::{crop::Grid, mask::Mask};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Unchecked run lengths as in JSON files.
#[derive(Deserialize, Serialize)]
pub struct StoredRunLengths {
    /// Height and width.
    size: [u64; 2],
    counts: Counts,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Counts {
    Text(String),
    List(Vec<u64>),
}

impl StoredRunLengths {
    /// # Errors
    /// Those of [`RunLengths::from_text`] and [`RunLengths::from_counts`].
    pub fn check(&self) -> Result<RunLengths, String> {
        let [height, width] = self.size;
        match &self.counts {
            Counts::Text(text) => RunLengths::from_text(height, width, text),
            Counts::List(list) => RunLengths::from_counts(height, width, list),
        }
    }
}

/// A checked run-length mask of `height` × `width` pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLengths {
    height: u32,
    width: u32,
    /// Lengths of background, foreground, background, … in column-major order; their sum is `height · width`.
    counts: Vec<u32>,
}

impl RunLengths {
    /// Checks a list of run lengths.
    ///
    /// # Errors
    /// The mask has no pixels or too many, or the lengths do not add up to its size.
    pub fn from_counts(height: u64, width: u64, counts: &[u64]) -> Result<Self, String> {
        let (height, width, total) = checked_size(height, width)?;
        let mut sum = 0u64;
        let mut checked = Vec::with_capacity(counts.len());
        for &count in counts {
            sum = sum.saturating_add(count);
            if sum > total {
                return Err(format!("run-lengths exceed the {height}×{width} mask"));
            }
            checked.push(count as u32);
        }
        Self::finish(height, width, checked, sum)
    }

    /// Decodes compressed text: little-endian groups of five bits with a continuation bit, sign-extended, offset by
    /// `'0'`; from the fourth length on, each is the difference from the length two before.
    ///
    /// # Errors
    /// Those of [`Self::from_counts`]; a character out of range, truncated text, a negative length.
    pub fn from_text(height: u64, width: u64, text: &str) -> Result<Self, String> {
        let (height, width, total) = checked_size(height, width)?;
        let mut counts: Vec<u32> = Vec::new();
        let (mut value, mut shift, mut sum) = (0i64, 0u32, 0u64);
        for (place, byte) in text.bytes().enumerate() {
            let group = byte.wrapping_sub(b'0');
            if group >= 64 {
                return Err(format!("run-lengths have the invalid byte {byte:#04x} at {place}"));
            }
            if shift > 30 {
                return Err(format!("run-lengths have a number that is too long at {place}"));
            }
            value |= i64::from(group & 0x1f) << shift;
            shift += 5;
            if group & 0x20 != 0 {
                continue;
            }
            if group & 0x10 != 0 {
                value |= -1 << shift;
            }
            if let Some(earlier) = counts.len().checked_sub(2).filter(|&index| index > 0) {
                value += i64::from(counts[earlier]);
            }
            sum = u64::try_from(value)
                .map(|count| sum.saturating_add(count))
                .map_err(|_| format!("run-lengths fall below zero at {place}"))?;
            if sum > total {
                return Err(format!("run-lengths exceed the {height}×{width} mask at {place}"));
            }
            counts.push(value as u32);
            (value, shift) = (0, 0);
        }
        if shift != 0 {
            return Err("run-lengths break off within a number".into());
        }
        Self::finish(height, width, counts, sum)
    }

    fn finish(height: u32, width: u32, counts: Vec<u32>, sum: u64) -> Result<Self, String> {
        if sum != u64::from(height) * u64::from(width) {
            return Err(format!("run-lengths add up to {sum}, not to the {height}×{width} pixels of the mask"));
        }
        Ok(Self { height, width, counts })
    }

    /// Run-lengths of a row-major bitmap of `height` × `width` (pycocotools: `encode`).
    ///
    /// # Errors
    /// The mask has no pixels or too many, or `bitmap` has another size.
    pub fn encode(height: usize, width: usize, bitmap: &[bool]) -> Result<Self, String> {
        let (rows, columns, total) = checked_size(height as u64, width as u64)?;
        if bitmap.len() as u64 != total {
            return Err(format!("{} pixels are no {height}×{width} mask", bitmap.len()));
        }
        let mut counts = Vec::new();
        let (mut run, mut current) = (0u32, false);
        for x in 0..width {
            for y in 0..height {
                let pixel = bitmap[y * width + x];
                if pixel != current {
                    counts.push(run);
                    (run, current) = (0, pixel);
                }
                run += 1;
            }
        }
        counts.push(run);
        Ok(Self { height: rows, width: columns, counts })
    }

    /// The mask turned as a picture of this orientation is.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn upright(&self, orientation: Orientation) -> Result<Self, String> {
        let (width, height) = (self.width(), self.height());
        let bitmap = upright(orientation, (width, height), &self.bitmap());
        let (width, height) = if exchanges_sides(orientation) { (height, width) } else { (width, height) };
        Self::encode(height, width, &bitmap)
    }

    /// The mask as a row-major bitmap `[height, width]` (pycocotools: `decode`).
    pub fn bitmap(&self) -> Vec<bool> {
        let (height, width) = (self.height(), self.width());
        let mut bitmap = vec![false; height * width];
        let mut place = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            let end = place + count as usize;
            if index % 2 == 1 {
                (place..end).for_each(|place| bitmap[place % height * width + place / height] = true);
            }
            place = end;
        }
        bitmap
    }

    /// Encodes as compressed text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (index, &count) in self.counts.iter().enumerate() {
            let mut value = i64::from(count);
            if index > 2 {
                value -= i64::from(self.counts[index - 2]);
            }
            loop {
                let mut group = (value & 0x1f) as u8;
                value >>= 5;
                let more = if group & 0x10 != 0 { value != -1 } else { value != 0 };
                if more {
                    group |= 0x20;
                }
                text.push(char::from(group + b'0'));
                if !more {
                    break;
                }
            }
        }
        text
    }

    /// Pixels a column.
    pub fn height(&self) -> usize {
        self.height as usize
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// Lengths of the runs down the columns, background first.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Number of foreground pixels at full size.
    pub fn area(&self) -> u64 {
        self.counts.iter().skip(1).step_by(2).map(|&count| u64::from(count)).sum()
    }

    /// Number of foreground pixels among the points of `grid`.
    pub fn area_on(&self, grid: &Grid) -> usize {
        let mut area = 0;
        self.spans_on(grid, |columns, rows| area += columns.len() * rows.len());
        area
    }

    /// Adds the mask, sampled at the points of `grid`, which must be for this mask's size, to another on that grid.
    pub fn add_to(&self, mask: &mut Mask, grid: &Grid) {
        self.spans_on(grid, |columns, rows| mask.fill(columns, rows));
    }

    /// Calls `visit` with the output columns and rows that each foreground run covers in each of its source columns.
    fn spans_on(&self, grid: &Grid, mut visit: impl FnMut(Range<usize>, Range<usize>)) {
        let height = u64::from(self.height);
        let mut start = 0u64;
        for (index, &count) in self.counts.iter().enumerate() {
            let end = start + u64::from(count);
            if index % 2 == 1 {
                let mut from = start;
                while from < end {
                    let column = from / height;
                    let to = end.min((column + 1) * height);
                    let columns = grid.columns_of(column as usize);
                    if !columns.is_empty() {
                        let rows = grid.rows_of((from - column * height) as usize, (to - column * height) as usize);
                        visit(columns, rows);
                    }
                    from = to;
                }
            }
            start = end;
        }
    }
}

/// Height and width as `u32`, and the number of pixels, which must fit into `u32` too.
pub(super) fn checked_size(height: u64, width: u64) -> Result<(u32, u32, u64), String> {
    match height.checked_mul(width) {
        Some(total) if total > 0 && total <= u64::from(u32::MAX) => Ok((height as u32, width as u32, total)),
        _ => Err(format!("a mask cannot be {height}×{width}")),
    }
}
