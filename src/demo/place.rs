//! Random placement of a scene's objects: position, size, mirroring, limited overlap.
use rand::Rng;

/// An object's square, in pixels from the upper left corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpritePlace {
    pub left: usize,
    pub top: usize,
    pub side: usize,
    pub mirrored: bool,
}

/// Greatest overlap of two squares, as a fraction of the smaller one's area.
const MOST_OVERLAP: f32 = 0.12;
const TRIES: usize = 30;

/// Places up to `count` objects in a picture of `size` pixels; fewer if no room is found.
pub fn places(count: usize, size: usize, random: &mut impl Rng) -> Vec<SpritePlace> {
    // About half of the picture's side; a little less for three objects.
    let sides = if count < 3 { 0.4..0.54 } else { 0.34..0.42 };
    let mut found: Vec<SpritePlace> = vec![];
    for _ in 0..count {
        for _ in 0..TRIES {
            let side = ((random.random_range(sides.clone()) * size as f32) as usize).max(1);
            let place = SpritePlace {
                left: random.random_range(0..=size - side),
                top: random.random_range(0..=size - side),
                side,
                mirrored: random.random(),
            };
            if found.iter().all(|other| overlap(place, *other) <= MOST_OVERLAP) {
                found.push(place);
                break;
            }
        }
    }
    found
}

/// The overlap of two squares as a fraction of the smaller one's area.
fn overlap(a: SpritePlace, b: SpritePlace) -> f32 {
    let shared =
        |a: usize, a_side: usize, b: usize, b_side: usize| (a + a_side).min(b + b_side).saturating_sub(a.max(b));
    let area = shared(a.left, a.side, b.left, b.side) * shared(a.top, a.side, b.top, b.side);
    area as f32 / a.side.min(b.side).pow(2) as f32
}
