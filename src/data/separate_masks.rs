//! Masks in files of their own: white is inside.
use super::codec::crop::Grid;
use super::codec::labels::LabelMap;
use super::codec::mask::Mask;
use super::sources::shards::Member;
use super::sources::unusable::Unusable;
use crate::system::limits::IMAGE_FILE;
use std::path::Path;

/// The masks in `files`, in their order, at the points of `grid` of a picture of `size`.
///
/// # Errors
/// A file cannot be read, is no picture without loss, or has another size than the picture.
pub fn separate_masks(
    files: &[Member],
    shard: &Path,
    size: (usize, usize),
    grid: &Grid,
) -> Result<Vec<Mask>, Unusable> {
    let read = |(number, file): (usize, &Member)| {
        let failed = |problem: String| format!("mask {number}: {problem}");
        let map = LabelMap::decode(&file.read(shard, IMAGE_FILE)?).map_err(failed)?;
        if (map.width, map.height) != size {
            let (width, height) = size;
            let found = format!("has {}×{} pixels, the image has {width}×{height}", map.width, map.height);
            return Err(failed(found).into());
        }
        Ok(mask(&map, grid))
    };
    files.iter().enumerate().map(read).collect()
}

/// What is brighter than half; 1 counts as white where nothing is brighter.
fn mask(map: &LabelMap, grid: &Grid) -> Mask {
    // Of colours the red: white has as much of each.
    let value = |x, y| if map.channels() < 3 { map.get(x, y) } else { map.get(x, y) & 0xff };
    let brightest = (0..map.height).flat_map(|y| (0..map.width).map(move |x| value(x, y))).max().unwrap_or(0);
    let least = match brightest {
        0..=1 => 1,
        2..=255 => 128,
        _ => 1 << 15,
    };
    let mut mask = Mask::new(grid.width(), grid.height());
    for y in 0..grid.height() {
        for x in 0..grid.width() {
            let (source_x, source_y) = grid.source(x, y);
            if value(source_x, source_y) >= least {
                mask.set(x, y);
            }
        }
    }
    mask
}
