//! Memory of tiles, kept from one product to the next.
use super::pack::{MICRO_PANEL, Tiles, ZEROS};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    /// What was dropped on this thread.
    static FREE: RefCell<Vec<Vec<Tiles>>> = const { RefCell::new(vec![]) };
}

/// As many micro-panels of `steps` steps as `lines` take, with any values.
pub struct MicroPanels {
    tiles: Vec<Tiles>,
    count: usize,
}

impl MicroPanels {
    pub fn new(lines: usize, steps: usize) -> Self {
        let count = lines.div_ceil(MICRO_PANEL) * 2 * steps;
        let mut tiles = FREE.with_borrow_mut(|free| {
            // The smallest that is large enough: growing sets what is new.
            let enough = free.iter().enumerate().filter(|(_, tiles)| tiles.len() >= count);
            let fit = enough.min_by_key(|(_, tiles)| tiles.len()).map(|(place, _)| place);
            fit.map(|place| free.swap_remove(place)).or_else(|| free.pop()).unwrap_or_default()
        });
        tiles.resize(tiles.len().max(count), ZEROS);
        Self { tiles, count }
    }
}

impl Deref for MicroPanels {
    type Target = [Tiles];

    fn deref(&self) -> &[Tiles] {
        &self.tiles[..self.count]
    }
}

impl DerefMut for MicroPanels {
    fn deref_mut(&mut self) -> &mut [Tiles] {
        &mut self.tiles[..self.count]
    }
}

impl Drop for MicroPanels {
    fn drop(&mut self) {
        /// What a thread keeps.
        const MOST: usize = 8;
        let tiles = std::mem::take(&mut self.tiles);
        // Where the thread is ending there is nothing to keep it for.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < MOST {
                free.push(tiles);
            }
        });
    }
}
