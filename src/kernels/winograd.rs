//! A 3×3 convolution by Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray 2015): sixteen outputs from thirty-six
//! products a pair of channels, in place of 144.
//!
//! Tiles of 6×6 inputs, four apart, and the kernels are taken to where the convolution is a product a position: 36 matrix
//! products of `[tiles, channels]` with `[channels, channels]`. Rounding is about ten times that of a direct convolution,
//! a few millionths of the largest value; cuDNN does the same.
use super::cpu::vectorised;
use super::matrix::{Threads, View};
use super::packed::{PackedA, PackedB, room, rows_at_once};

/// Outputs of a tile, a side; the tile reads two more.
pub(crate) const TILE: usize = 4;
/// Inputs of a tile, a side.
const SIDE: usize = TILE + 2;
/// Positions of a transformed tile.
const POSITIONS: usize = SIDE * SIDE;
/// Tiles that are transformed together, so that they and their products stay in cache.
fn tiles_at_once() -> usize {
    rows_at_once(64)
}

/// Transformed tiles and their products, `[position][tile, channel]`; made once for many convolutions.
pub(crate) struct Scratch<const C: usize> {
    transformed: Vec<PackedA>,
    products: Vec<Vec<[f32; C]>>,
}

impl<const C: usize> Default for Scratch<C> {
    fn default() -> Self {
        assert_eq!(room(C), C, "channels come in whole strips");
        Self {
            transformed: (0..POSITIONS).map(|_| PackedA::new(tiles_at_once(), C)).collect(),
            products: vec![vec![[0f32; C]; tiles_at_once()]; POSITIONS],
        }
    }
}

/// Kernels of a convolution from C to C channels in Winograd's form: `[position][in, out]`.
pub(crate) struct Kernels<const C: usize>(Vec<PackedB>);

/// Sizes of a stack of channel-last maps, `[maps, height, width, channels]`.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    pub maps: usize,
    pub height: usize,
    pub width: usize,
}

/// Where a tile's outputs begin, counted without the outermost pixels of its map.
#[derive(Clone, Copy)]
pub(crate) struct TilePlace {
    pub map: usize,
    pub y: usize,
    pub x: usize,
}

/// Where outputs go. (A closure would not be inlined into the loops of every width of vectors.)
pub(crate) trait Outputs<const C: usize> {
    /// A tile's outputs, row by row.
    fn put(&mut self, place: TilePlace, values: &[[f32; C]; TILE * TILE]);
}

impl<const C: usize> Kernels<C> {
    /// From torch's `[out, in, 3, 3]`: `G·g·Gᵀ`.
    pub(crate) fn new(weight: &[f32]) -> Self {
        let mut transformed = vec![[0f32; C]; POSITIONS * C];
        let line = |a: f32, b: f32, c: f32| {
            let (outer, far) = (a + c, a + 4.0 * c);
            [a / 4.0, -(outer + b) / 6.0, -(outer - b) / 6.0, (far + 2.0 * b) / 24.0, (far - 2.0 * b) / 24.0, c]
        };
        for (pair, kernel) in weight.chunks_exact(9).enumerate() {
            let (outer, inner) = (pair / C, pair % C);
            let columns: [[f32; SIDE]; 3] = std::array::from_fn(|x| line(kernel[x], kernel[3 + x], kernel[6 + x]));
            for y in 0..SIDE {
                let row = line(columns[0][y], columns[1][y], columns[2][y]);
                for (x, value) in row.into_iter().enumerate() {
                    transformed[(y * SIDE + x) * C + inner][outer] = value;
                }
            }
        }
        let kernels = transformed.chunks_exact(C);
        Self(kernels.map(|kernel| PackedB::new(View::rows(kernel.as_flattened(), C), (C, C), Threads::One)).collect())
    }

    /// The convolution of `input`, of a `stack` whose height and width are two more than whole tiles, at all but the
    /// outermost pixels, tile by tile.
    pub(crate) fn convolve(
        &self,
        input: &[[f32; C]],
        stack: Stack,
        Scratch { transformed, products }: &mut Scratch<C>,
        output: &mut impl Outputs<C>,
    ) {
        let (rows, columns) = ((stack.height - 2) / TILE, (stack.width - 2) / TILE);
        let tiles = stack.maps * rows * columns;
        let place = |tile: usize| TilePlace {
            map: tile / (rows * columns),
            y: tile / columns % rows * TILE,
            x: tile % columns * TILE,
        };
        for first in (0..tiles).step_by(tiles_at_once()) {
            let count = tiles_at_once().min(tiles - first);
            vectorised!({
                let mut columns = [[[0f32; C]; SIDE]; SIDE];
                for tile in 0..count {
                    let TilePlace { map, y, x } = place(first + tile);
                    for (column, out) in columns.iter_mut().enumerate() {
                        let pixel = |row: usize| &input[(map * stack.height + y + row) * stack.width + x + column];
                        transform_line(std::array::from_fn(pixel), out);
                    }
                    let mut line = [[0f32; C]; SIDE];
                    for row in 0..SIDE {
                        transform_line(std::array::from_fn(|column| &columns[column][row]), &mut line);
                        for (column, values) in line.iter().enumerate() {
                            transformed[row * SIDE + column].set(tile, values);
                        }
                    }
                }
            });
            for ((rows, kernel), products) in transformed.iter().zip(&self.0).zip(&mut *products) {
                kernel.multiply(rows, count, None, products.as_flattened_mut());
            }
            vectorised!({
                let mut columns = [[[0f32; C]; TILE]; SIDE];
                let mut outputs = [[0f32; C]; TILE * TILE];
                for (tile, place) in (first..first + count).map(place).enumerate() {
                    for (column, out) in columns.iter_mut().enumerate() {
                        let product = |row: usize| &products[row * SIDE + column][tile];
                        transform_line_back(std::array::from_fn(product), out);
                    }
                    for (row, out) in outputs.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
                        transform_line_back(std::array::from_fn(|column| &columns[column][row]), out);
                    }
                    output.put(place, &outputs);
                }
            });
        }
    }
}

/// `Bᵀ·d` of a line of inputs; over columns and then rows that is `Bᵀ·d·B`.
#[inline(always)]
fn transform_line<const C: usize>(d: [&[f32; C]; SIDE], out: &mut [[f32; C]; SIDE]) {
    for c in 0..C {
        let (even, odd) = (d[4][c] - 4.0 * d[2][c], d[3][c] - 4.0 * d[1][c]);
        let (far_even, far_odd) = (d[4][c] - d[2][c], 2.0 * (d[3][c] - d[1][c]));
        out[0][c] = 4.0 * d[0][c] - 5.0 * d[2][c] + d[4][c];
        out[1][c] = even + odd;
        out[2][c] = even - odd;
        out[3][c] = far_even + far_odd;
        out[4][c] = far_even - far_odd;
        out[5][c] = 4.0 * d[1][c] - 5.0 * d[3][c] + d[5][c];
    }
}

/// `Aᵀ·m` of a line of products.
#[inline(always)]
fn transform_line_back<const C: usize>(m: [&[f32; C]; SIDE], out: &mut [[f32; C]; TILE]) {
    for c in 0..C {
        let (sum, difference) = (m[1][c] + m[2][c], m[1][c] - m[2][c]);
        let (far_sum, far_difference) = (m[3][c] + m[4][c], m[3][c] - m[4][c]);
        out[0][c] = m[0][c] + sum + far_sum;
        out[1][c] = difference + 2.0 * far_difference;
        out[2][c] = sum + 4.0 * far_sum;
        out[3][c] = difference + 8.0 * far_difference + m[5][c];
    }
}
