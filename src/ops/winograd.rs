//! A 3×3 convolution by Winograd's minimal filtering F(2×2, 3×3) (Lavin and Gray 2015): four outputs from sixteen
//! products a pair of channels, in place of thirty-six.
//!
//! Tiles of 4×4 inputs, two apart, and the kernels are taken to where the convolution is a product a position: sixteen
//! matrix products of `[tiles, channels]` with `[channels, channels]`. The transforms add, subtract and halve, so
//! rounding stays that of a direct convolution.
use super::cpu::{Product, Threads, View, vectorised};

/// Outputs of a tile, a side; the tile reads two more.
pub(super) const TILE: usize = 2;
/// Positions of a transformed tile.
const POSITIONS: usize = 16;
/// Tiles that are transformed together, so that they and their products stay in cache.
const TILES_AT_ONCE: usize = 128;

/// Kernels of a convolution from C to C channels in Winograd's form: `[position, in, out]`.
pub(super) struct Kernels<const C: usize>(Vec<[f32; C]>);

/// Sizes of a stack of channel-last maps, `[maps, height, width, channels]`.
#[derive(Clone, Copy)]
pub(super) struct Stack {
    pub maps: usize,
    pub height: usize,
    pub width: usize,
}

/// Where a tile's outputs begin, counted without the outermost pixels of its map.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub map: usize,
    pub y: usize,
    pub x: usize,
}

impl<const C: usize> Kernels<C> {
    /// From torch's `[out, in, 3, 3]`: `G·g·Gᵀ`.
    pub(super) fn new(weight: &[f32]) -> Self {
        let mut transformed = vec![[0f32; C]; POSITIONS * C];
        let line = |a: f32, b: f32, c: f32| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
        for (pair, kernel) in weight.chunks_exact(9).enumerate() {
            let (outer, inner) = (pair / C, pair % C);
            let columns: [[f32; 4]; 3] = std::array::from_fn(|x| line(kernel[x], kernel[3 + x], kernel[6 + x]));
            for y in 0..4 {
                let row = line(columns[0][y], columns[1][y], columns[2][y]);
                for (x, value) in row.into_iter().enumerate() {
                    transformed[(y * 4 + x) * C + inner][outer] = value;
                }
            }
        }
        Self(transformed)
    }

    /// The convolution of `input`, of a `stack` with even height and width, at all but the outermost pixels: `output` is
    /// called for every tile with its outputs, row by row.
    pub(super) fn convolve(
        &self,
        input: &[[f32; C]],
        stack: Stack,
        mut output: impl FnMut(Place, &[[f32; C]; TILE * TILE]),
    ) {
        let (rows, columns) = ((stack.height - 2) / TILE, (stack.width - 2) / TILE);
        let tiles = stack.maps * rows * columns;
        let place = |tile: usize| Place {
            map: tile / (rows * columns),
            y: tile / columns % rows * TILE,
            x: tile % columns * TILE,
        };
        let mut transformed = vec![[0f32; C]; POSITIONS * TILES_AT_ONCE];
        let mut products = vec![[0f32; C]; POSITIONS * TILES_AT_ONCE];
        for first in (0..tiles).step_by(TILES_AT_ONCE) {
            let count = TILES_AT_ONCE.min(tiles - first);
            vectorised(|| {
                for tile in 0..count {
                    let Place { map, y, x } = place(first + tile);
                    let pixels = std::array::from_fn(|row| {
                        let start = (map * stack.height + y + row) * stack.width + x;
                        std::array::from_fn(|column| &input[start + column])
                    });
                    for (position, value) in transform(pixels).into_iter().enumerate() {
                        transformed[position * TILES_AT_ONCE + tile] = value;
                    }
                }
            });
            for position in 0..POSITIONS {
                Product {
                    shape: (count, C, C),
                    a: View::rows(transformed[position * TILES_AT_ONCE..].as_flattened(), C),
                    b: View::rows(self.0[position * C..].as_flattened(), C),
                    scale: 1.0,
                    accumulate: false,
                    threads: Threads::One,
                }
                .into(products[position * TILES_AT_ONCE..].as_flattened_mut(), C);
            }
            vectorised(|| {
                for tile in 0..count {
                    let of_tile = std::array::from_fn(|position| &products[position * TILES_AT_ONCE + tile]);
                    output(place(first + tile), &transform_back(of_tile));
                }
            });
        }
    }
}

/// `Bᵀ·d·B`.
#[inline(always)]
fn transform<const C: usize>(d: [[&[f32; C]; 4]; 4]) -> [[f32; C]; POSITIONS] {
    let line = |d: [&[f32; C]; 4]| {
        let mut out = [[0f32; C]; 4];
        for c in 0..C {
            out[0][c] = d[0][c] - d[2][c];
            out[1][c] = d[1][c] + d[2][c];
            out[2][c] = d[2][c] - d[1][c];
            out[3][c] = d[1][c] - d[3][c];
        }
        out
    };
    let columns: [[[f32; C]; 4]; 4] = std::array::from_fn(|x| line([d[0][x], d[1][x], d[2][x], d[3][x]]));
    let mut out = [[0f32; C]; POSITIONS];
    for y in 0..4 {
        let row = line([&columns[0][y], &columns[1][y], &columns[2][y], &columns[3][y]]);
        out[4 * y..4 * y + 4].copy_from_slice(&row);
    }
    out
}

/// `Aᵀ·m·A`.
#[inline(always)]
fn transform_back<const C: usize>(m: [&[f32; C]; POSITIONS]) -> [[f32; C]; TILE * TILE] {
    let line = |m: [&[f32; C]; 4]| {
        let mut out = [[0f32; C]; TILE];
        for c in 0..C {
            out[0][c] = m[0][c] + m[1][c] + m[2][c];
            out[1][c] = m[1][c] - m[2][c] - m[3][c];
        }
        out
    };
    let columns: [[[f32; C]; TILE]; 4] = std::array::from_fn(|x| line([m[x], m[4 + x], m[8 + x], m[12 + x]]));
    let mut out = [[0f32; C]; TILE * TILE];
    for y in 0..TILE {
        let row = line([&columns[0][y], &columns[1][y], &columns[2][y], &columns[3][y]]);
        out[TILE * y..TILE * y + TILE].copy_from_slice(&row);
    }
    out
}
