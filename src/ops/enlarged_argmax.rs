//! The winning map at every pixel of a larger picture: the enlarged maps are never stored.
use super::cpu::vectorised;
use super::enlarge::{Enlarge, Rows};
use rayon::prelude::*;

/// Rows of the picture that a task takes.
const ROWS_A_TASK: usize = 16;

/// Enlarges maps `[count, h, w]` bilinearly to `(height, width)`, which may be smaller too (torch: `interpolate` with
/// `align_corners=False` and no antialiasing), and takes the index of the greatest at every pixel, the first of equals:
/// `[height, width]`.
///
/// # Panics
/// When `maps` is empty or not of the size given, or there are more than 65536 maps.
pub fn enlarged_argmax(maps: &[f32], (h, w): (usize, usize), (height, width): (usize, usize)) -> Vec<u16> {
    assert!(!maps.is_empty() && maps.len().is_multiple_of(h * w) && maps.len() / (h * w) <= 1 << 16);
    let (vertical, horizontal) = (&Enlarge::new(h, height), &Enlarge::new(w, width));
    let mut winners = vec![0; height * width];
    winners.par_chunks_mut((ROWS_A_TASK * width).max(1)).enumerate().for_each(|(task, winners)| {
        let mut maps: Vec<Rows> = maps.chunks_exact(h * w).map(|map| Rows::new(map, vertical, horizontal)).collect();
        let (mut values, mut greatest) = (vec![0f32; width], vec![0f32; width]);
        vectorised(|| {
            for (y, winners) in (task * ROWS_A_TASK..).zip(winners.chunks_exact_mut(width)) {
                greatest.fill(f32::NEG_INFINITY);
                for (index, map) in maps.iter_mut().enumerate() {
                    map.row(y, &mut values);
                    for ((value, greatest), winner) in values.iter().zip(&mut greatest).zip(winners.iter_mut()) {
                        let wins = value > greatest;
                        *greatest = if wins { *value } else { *greatest };
                        *winner = if wins { index as u16 } else { *winner };
                    }
                }
            }
        });
    });
    winners
}
