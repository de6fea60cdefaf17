//! Vector loops on the CPU, over work that is cut the same way whatever the number of threads, so that results do not depend on
//! it.
pub(crate) use crate::system::vectors::vectorised;
use std::mem::MaybeUninit;

/// Values that a task takes of a vector loop's rows.
pub const TASK: usize = 16384;

/// `for_each_row!(out, width, |r, row| work)` does `work` for every row of `width` elements, on all threads; a last one may
/// be shorter.
macro_rules! for_each_row {
    ($out:expr, $width:expr, |$r:pat_param, $row:pat_param| $work:expr) => {{
        let out: &mut [f32] = $out;
        $crate::kernels::cpu::rows_of!(out, $width, |values| values, |$r, $row| $work)
    }};
}
pub(crate) use for_each_row;

/// `new_rows!(length, width, |r, row| work)`: as many values, of which `work` gets every row of `width`, full of zeros.
macro_rules! new_rows {
    ($length:expr, $width:expr, |$r:pat_param, $row:pat_param| $work:expr) => {{
        let length: usize = $length;
        let mut out: Vec<f32> = Vec::with_capacity(length);
        let unset = &mut out.spare_capacity_mut()[..length];
        $crate::kernels::cpu::rows_of!(unset, $width, $crate::kernels::cpu::zeros, |$r, $row| $work);
        // SAFETY: the tasks have written all of it.
        unsafe { out.set_len(length) };
        out
    }};
}
pub(crate) use new_rows;

/// The loop of both: `prepare` makes a task's values what they are to be.
macro_rules! rows_of {
    ($out:expr, $width:expr, $prepare:expr, |$r:pat_param, $row:pat_param| $work:expr) => {{
        use rayon::prelude::*;
        let width: usize = $width;
        let rows_a_task = ($crate::kernels::cpu::TASK / width.max(1)).max(1);
        $out.par_chunks_mut(width * rows_a_task).enumerate().for_each(|(task, values)| {
            let values: &mut [f32] = $prepare(values);
            $crate::system::vectors::vectorised!({
                for (i, row) in values.chunks_mut(width).enumerate() {
                    let ($r, $row) = (task * rows_a_task + i, row);
                    $work
                }
            })
        });
    }};
}
pub(crate) use rows_of;

/// Sets all of `values` to zero.
pub fn zeros(values: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    values.fill(MaybeUninit::new(0.0));
    // SAFETY: they have just been set.
    unsafe { &mut *(values as *mut [MaybeUninit<f32>] as *mut [f32]) }
}

/// Running sums that a vector loop keeps.
const LANES: usize = 16;

/// Sum over `f(i)` for `i` in `0..n`, in a fixed order that vector units can follow.
#[inline(always)]
pub fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(i + lane);
        }
        i += LANES;
    }
    for i in whole..n {
        lanes[i - whole] += f(i);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// Several such sums in one pass.
#[inline(always)]
pub fn sums<const N: usize>(n: usize, f: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0f32; LANES]; N];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for lane in 0..LANES {
            let values = f(i + lane);
            for (lanes, value) in lanes.iter_mut().zip(values) {
                lanes[lane] += value;
            }
        }
        i += LANES;
    }
    for i in whole..n {
        for (lanes, value) in lanes.iter_mut().zip(f(i)) {
            lanes[i - whole] += value;
        }
    }
    lanes.map(|lanes| sum(LANES, |lane| lanes[lane]))
}

/// The largest value, in the same lanes as [`sum`]; negative infinity for none.
#[inline(always)]
pub fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let largest = |a: f32, b: &f32| if *b > a { *b } else { a };
    rest.iter().fold(lanes.iter().fold(f32::NEG_INFINITY, largest), largest)
}

/// e^x to within 2 units in the last place, without branches (Cephes' `expf`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_375, x));
    let p = 1.987_569_15e-4f32;
    let p = p.mul_add(r, 1.398_199_95e-3);
    let p = p.mul_add(r, 8.333_451_9e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_55e-1);
    let p = p.mul_add(r, 5.000_000_12e-1);
    let p = p.mul_add(r * r, r) + 1.0;
    times_power(p, shifted)
}

/// 2^x to within 2 units in the last place for x below 127, without branches (Cephes' `exp2f`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn exp2(x: f32) -> f32 {
    // No `max`, which would make a number of what is none.
    let x = if x < -126.0 { -126.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let p = 1.535_336_188e-4f32;
    let p = p.mul_add(r, 1.339_887_440e-3);
    let p = p.mul_add(r, 9.618_437_357e-3);
    let p = p.mul_add(r, 5.550_332_471e-2);
    let p = p.mul_add(r, 2.402_264_791e-1);
    let p = p.mul_add(r, 6.931_472_028e-1);
    times_power(p.mul_add(r, 1.0), shifted)
}

/// 1.5 · 2^23: adding it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `p` times 2 to the integer in the low bits of `shifted`.
#[inline(always)]
fn times_power(p: f32, shifted: f32) -> f32 {
    let bits = (shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits());
    p * f32::from_bits(bits)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Values to powers of two of their distances to the largest; returns that and the powers' sum.
#[inline(always)]
pub fn powers_of_two(row: &mut [f32]) -> (f32, f32) {
    let largest = maximum(row);
    let mut lanes = [0f32; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for chunk in whole {
        for (value, lane) in chunk.iter_mut().zip(&mut lanes) {
            *value = exp2(*value - largest);
            *lane += *value;
        }
    }
    for (value, lane) in rest.iter_mut().zip(&mut lanes) {
        *value = exp2(*value - largest);
        *lane += *value;
    }
    (largest, sum(LANES, |lane| lanes[lane]))
}

/// Softmax of a row in place, of scores in units of log 2.
#[inline(always)]
pub fn softmax(row: &mut [f32]) {
    let (_, sum) = powers_of_two(row);
    let inverse = 1.0 / sum;
    for value in row.iter_mut() {
        *value *= inverse;
    }
}
