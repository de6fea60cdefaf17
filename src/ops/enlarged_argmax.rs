//! The winning map at every pixel of a larger picture: the enlarged maps are never stored.
//!
//! The picture falls into cells, whose pixels lie between the same four places of the maps. Only maps that can win in
//! a cell are enlarged there, which are few of many: bilinear values lie between those at the corners.
use super::enlarge::Enlarge;
use crate::kernels::cpu::vectorised;
use rayon::prelude::*;

/// More than rounding can add to a value, relatively.
const SLACK: f32 = 1e-5;

/// Enlarges maps `[count, h, w]` bilinearly to `(height, width)`, which may be smaller too (torch: `interpolate` with
/// `align_corners=False` and no antialiasing), and takes the index of the greatest at every pixel, the first of equals:
/// `[height, width]`.
///
/// # Panics
/// When `maps` is empty or not of the size given, or there are more than 65536 maps.
pub fn enlarged_argmax(maps: &[f32], (h, w): (usize, usize), (height, width): (usize, usize)) -> Vec<u16> {
    assert!(!maps.is_empty() && maps.len().is_multiple_of(h * w) && maps.len() / (h * w) <= 1 << 16);
    let (vertical, horizontal) = (Enlarge::new(h, height), Enlarge::new(w, width));
    let cells = horizontal.runs();
    let mut winners = vec![0; height * width];
    let mut rest = winners.as_mut_slice();
    let mut bands = vec![];
    for (top, bottom, rows) in vertical.runs() {
        let (band, below) = rest.split_at_mut(rows.len() * width);
        bands.push((top, bottom, rows, band));
        rest = below;
    }
    bands.into_par_iter().for_each(|(top, bottom, rows, band)| {
        vectorised!({
            let down = &vertical.weight[rows];
            let mut candidates = vec![];
            let mut greatest = vec![0f32; width];
            for (left, right, columns) in &cells {
                find_candidates(
                    maps,
                    h * w,
                    [top * w + left, top * w + right, bottom * w + left, bottom * w + right],
                    &mut candidates,
                );
                let across = &horizontal.weight[columns.clone()];
                let greatest = &mut greatest[..across.len()];
                for (down, row) in down.iter().zip(band.chunks_exact_mut(width)) {
                    fill_row(&candidates, *down, across, greatest, &mut row[columns.clone()]);
                }
            }
        });
    });
    winners
}

/// A map's values at the corners of a cell, top left first.
struct Candidate {
    index: u16,
    corners: [f32; 4],
}

/// Leaves out the maps that are nowhere in the cell as great as another is everywhere in it.
#[inline(always)]
fn find_candidates(maps: &[f32], size: usize, corners: [usize; 4], candidates: &mut Vec<Candidate>) {
    let mut sure = f32::NEG_INFINITY;
    candidates.clear();
    for (index, map) in maps.chunks_exact(size).enumerate() {
        let corners = corners.map(|place| map[place]);
        let (least, greatest) =
            corners.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, g), v| (l.min(*v), g.max(*v)));
        if greatest + SLACK * greatest.abs() >= sure {
            candidates.push(Candidate { index: index as u16, corners });
        }
        sure = sure.max(least);
    }
    candidates.retain(|Candidate { corners, .. }| corners.iter().any(|value| value + SLACK * value.abs() >= sure));
}

/// One row of a cell: the winners, by the weights of the lower and of the right corners.
#[inline(always)]
fn fill_row(candidates: &[Candidate], down: f32, across: &[f32], greatest: &mut [f32], winners: &mut [u16]) {
    greatest.fill(f32::NEG_INFINITY);
    for Candidate { index, corners: [top_left, top_right, bottom_left, bottom_right] } in candidates {
        let left = top_left * (1.0 - down) + bottom_left * down;
        let right = top_right * (1.0 - down) + bottom_right * down;
        for ((across, greatest), winner) in across.iter().zip(greatest.iter_mut()).zip(winners.iter_mut()) {
            let value = left * (1.0 - across) + right * across;
            let wins = value > *greatest;
            *greatest = if wins { value } else { *greatest };
            *winner = if wins { *index } else { *winner };
        }
    }
}
