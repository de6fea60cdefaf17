//! Writing matrices out as tiles, an f32 as three bfloat16 numbers.
use crate::kernels::avx512;
use crate::kernels::matrix::View;
use std::arch::x86_64::*;

/// Rows of a tile; also the numbers of a vector.
pub const SIDE: usize = 16;
/// Steps of K of a tile.
pub const DEPTH: usize = 32;
/// bfloat16 numbers that make up an f32.
pub const PARTS: usize = 3;
/// Lines that go through the registers together.
pub const MICRO_PANEL: usize = 2 * SIDE;

/// What a register holds: 16 rows of 32 bfloat16 numbers.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile([u16; SIDE * DEPTH]);

/// The tiles of 16 lines and 32 steps of K, largest parts first. Two of these, one below the other, are a step of a
/// micro-panel.
pub type Tiles = [Tile; PARTS];

pub const ZEROS: Tiles = [Tile([0; SIDE * DEPTH]); PARTS];

/// A matrix of a product as lines (rows of the left one, columns of the right one) of steps of K.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// `[lines, steps of K]`, one of whose strides is 1.
    pub view: View<'a>,
    pub lines: usize,
    /// The first step of K and the one behind the last.
    pub inner: (usize, usize),
    pub scale: f32,
    /// The right matrix's tiles hold a pair of places a row, and in it line by line.
    pub is_right: bool,
}

/// Places of 16-bit numbers in two vectors.
#[repr(align(64))]
struct Order([u16; 2 * SIDE]);

/// The upper halves of one vector's numbers, then of the other's.
static ONE_BY_ONE: Order = upper_halves(false);
/// The upper halves of both vectors' numbers in turn.
static IN_TURN: Order = upper_halves(true);

const fn upper_halves(in_turn: bool) -> Order {
    let mut order = [0; 2 * SIDE];
    let mut i = 0;
    while i < 2 * SIDE {
        let number = if in_turn { i / 2 + SIDE * (i % 2) } else { i };
        order[i] = 2 * number as u16 + 1;
        i += 1;
    }
    Order(order)
}

impl Operand<'_> {
    /// Steps of 32 steps of K.
    pub fn steps(&self) -> usize {
        (self.inner.1 - self.inner.0).div_ceil(DEPTH)
    }

    /// How many of the 16 lines from `line` on there are.
    fn lines_from(&self, line: usize) -> usize {
        SIDE.min(self.lines.saturating_sub(line))
    }

    /// How many of the 16 steps of K from `place` on there are.
    fn places_from(&self, place: usize) -> usize {
        SIDE.min(self.inner.1.saturating_sub(place))
    }

    /// Writes row `row` of the tiles of lines from `line` and steps of K from `place` on, with zeros beyond the matrix.
    /// `transposed` is kept between the rows of the same tiles.
    ///
    /// # Safety
    /// Every element of `view` up to `lines` and `inner` lies in its slice.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn write_row(
        &self,
        (line, place): (usize, usize),
        row: usize,
        transposed: &mut [__m512; 2 * SIDE],
        tiles: &mut Tiles,
    ) {
        let is_transposed = (self.view.column_stride == 1) == self.is_right;
        // SAFETY: counts end where the matrix does.
        let (a, b) = unsafe {
            match (is_transposed, self.is_right) {
                (true, true) => {
                    if row.is_multiple_of(SIDE / 2) {
                        let start = row * 2;
                        transposed[start..start + SIDE].copy_from_slice(&self.transpose(line, place + start));
                    }
                    (transposed[2 * row], transposed[2 * row + 1])
                }
                (true, false) => {
                    if row == 0 {
                        transposed[..SIDE].copy_from_slice(&self.transpose(line, place));
                        transposed[SIDE..].copy_from_slice(&self.transpose(line, place + SIDE));
                    }
                    (transposed[row], transposed[row + SIDE])
                }
                (false, true) => {
                    let lines = self.lines_from(line);
                    let at = |place: usize| self.load(line, place, if place < self.inner.1 { lines } else { 0 });
                    (at(place + 2 * row), at(place + 2 * row + 1))
                }
                (false, false) => {
                    let is_there = line + row < self.lines;
                    let at =
                        |place: usize| self.load(line + row, place, if is_there { self.places_from(place) } else { 0 });
                    (at(place), at(place + SIDE))
                }
            }
        };
        let scale = _mm512_set1_ps(self.scale);
        let order = if self.is_right { &IN_TURN } else { &ONE_BY_ONE };
        // SAFETY: an order is a whole aligned vector.
        let order = unsafe { _mm512_load_si512(order.0.as_ptr().cast()) };
        write_parts(split(_mm512_mul_ps(a, scale), _mm512_mul_ps(b, scale), order), row, tiles);
    }

    fn address(&self, line: usize, place: usize) -> *const f32 {
        self.view.data.as_ptr().wrapping_add(line * self.view.row_stride + place * self.view.column_stride)
    }

    /// The first `count` numbers from (line, place) on in memory, then zeros.
    ///
    /// # Safety
    /// As many lie in the slice.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(&self, line: usize, place: usize, count: usize) -> __m512 {
        let mask = ((1u32 << count) - 1) as u16;
        // SAFETY: the mask leaves out what is not there, which is not read.
        unsafe { _mm512_maskz_loadu_ps(mask, self.address(line, place)) }
    }

    /// 16 lines of 16 places, lying in memory the other way than the tiles need them.
    ///
    /// # Safety
    /// As of [`Self::write_row`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn transpose(&self, line: usize, place: usize) -> [__m512; SIDE] {
        let (lines, places) = (self.lines_from(line), self.places_from(place));
        // SAFETY: counts end where the matrix does.
        avx512::transpose(std::array::from_fn(|i| unsafe {
            match self.view.column_stride == 1 {
                true => self.load(line + i, place, if i < lines { places } else { 0 }),
                false => self.load(line, place + i, if i < places { lines } else { 0 }),
            }
        }))
    }

    /// Asks for the numbers of the tiles from (line, place) on ahead of their use.
    #[inline]
    fn fetch(&self, line: usize, place: usize) {
        for i in 0..DEPTH {
            let address = match self.view.column_stride == 1 {
                true => self.address(line + i / 2, place + i % 2 * SIDE),
                false => self.address(line, place + i),
            };
            // SAFETY: fetching faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        }
    }
}

/// Writes a left matrix's row as row `row` of a micro-panel's `tiles`, with zeros behind it.
///
/// # Safety
/// The machine has these instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn write_row(values: &[f32], row: usize, tiles: &mut [Tiles]) {
    assert!(row < MICRO_PANEL && values.len().div_ceil(DEPTH) * 2 == tiles.len());
    // SAFETY: an order is a whole aligned vector.
    let order = unsafe { _mm512_load_si512(ONE_BY_ONE.0.as_ptr().cast()) };
    for (values, tiles) in values.chunks(DEPTH).zip(tiles.chunks_exact_mut(2)) {
        let start = values.as_ptr();
        let mask = ((1u64 << values.len()) - 1) as u32;
        // SAFETY: the masks leave out what is not there.
        let (a, b) = unsafe {
            (
                _mm512_maskz_loadu_ps(mask as u16, start),
                _mm512_maskz_loadu_ps((mask >> SIDE) as u16, start.wrapping_add(SIDE)),
            )
        };
        write_parts(split(a, b, order), row % SIDE, &mut tiles[row / SIDE]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn write_parts(parts: [__m512i; PARTS], row: usize, tiles: &mut Tiles) {
    for (tile, part) in tiles.iter_mut().zip(parts) {
        // SAFETY: a row of a tile is a whole aligned vector.
        unsafe { _mm512_store_si512(tile.0[row * DEPTH..][..DEPTH].as_mut_ptr().cast(), part) };
    }
}

/// A micro-panel that is written out row by row while the registers are busy with another.
pub struct Packing<'a> {
    operand: Operand<'a>,
    /// The micro-panel's first line.
    line: usize,
    tiles: &'a mut [Tiles],
    /// Rows written.
    rows: usize,
    /// A part of all rows is written for every unit of work: `owed / work` of them are due.
    work: usize,
    owed: usize,
    transposed: [__m512; 2 * SIDE],
}

impl<'a> Packing<'a> {
    /// Will write the micro-panel from `line` on to `tiles` in the course of `work` calls of [`Self::go_on`].
    ///
    /// # Safety
    /// Every element of the operand's view up to its lines and steps of K lies in its slice.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn new(operand: Operand<'a>, line: usize, tiles: &'a mut [Tiles], work: usize) -> Self {
        Self { operand, line, tiles, rows: 0, work, owed: 0, transposed: [_mm512_setzero_ps(); 2 * SIDE] }
    }

    /// Writes the rows that are due.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn go_on(&mut self) {
        self.owed += self.tiles.len() * SIDE;
        while self.rows * self.work < self.owed {
            self.write_row();
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn write_row(&mut self) {
        let (group, row) = (self.rows / SIDE, self.rows % SIDE);
        let at = |group: usize| (self.line + group % 2 * SIDE, self.operand.inner.0 + group / 2 * DEPTH);
        if row == 0 {
            let (line, place) = at(group + 2);
            self.operand.fetch(line, place);
        }
        if let Some(tiles) = self.tiles.get_mut(group) {
            // SAFETY: as `new` was told.
            unsafe { self.operand.write_row(at(group), row, &mut self.transposed, tiles) };
        }
        self.rows += 1;
    }
}

/// The parts of two vectors, their 16-bit numbers in `order`: the nearest bfloat16, that of the rest, and the rest of that,
/// which is one. (Of NaN the third part is, whatever the others are.)
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split(a: __m512, b: __m512, order: __m512i) -> [__m512i; PARTS] {
    let half = _mm512_set1_epi32(0x8000);
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let nearest = |x: __m512| _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), upper);
    let without = |x: __m512, part: __m512i| _mm512_sub_ps(x, _mm512_castsi512_ps(part));
    let first = (nearest(a), nearest(b));
    let (a, b) = (without(a, first.0), without(b, first.1));
    let second = (nearest(a), nearest(b));
    let third = (without(a, second.0), without(b, second.1));
    let third = (_mm512_castps_si512(third.0), _mm512_castps_si512(third.1));
    [first, second, third].map(|(a, b)| _mm512_permutex2var_epi16(a, order, b))
}
