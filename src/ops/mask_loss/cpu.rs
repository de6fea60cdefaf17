//! Focal and dice loss in f32 in the host's memory, a row of the enlarged map at a time.
use super::{ALPHA, MaskLoss, Target};
use crate::kernels::cpu::{exp, sums, vectorised};
use crate::kernels::memory::Values;
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
use crate::ops::enlarge::{Enlarge, Rows, RowsBackward};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// `ln(1 + e^-|x|)`, the part of the cross-entropy that is not linear.
#[inline(always)]
pub fn soft(x: f32) -> f32 {
    ln_1_plus(exp(-x.abs()))
}

/// `ln(1 + t)` for t from 0 to 1, by atanh's series in s = t/(2+t) <= 1/3.
#[inline(always)]
fn ln_1_plus(t: f32) -> f32 {
    let s = t / (2.0 + t);
    let s2 = s * s;
    2.0 * s * (1.0 + s2 * (1.0 / 3.0 + s2 * (0.2 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0 + s2 * (1.0 / 11.0))))))
}

/// What both losses are made of, at one pixel: the sigmoid of the logit, the cross-entropy, focal's `1 − p_t`, and its α. One
/// exponential serves all.
#[inline(always)]
fn pixel(logit: f32, target: f32, raw_logit: bool) -> (f32, f32, f32, f32) {
    let t = exp(-logit.abs());
    let larger = 1.0 / (1.0 + t);
    let probability = if logit >= 0.0 { larger } else { t * larger };
    let p = if raw_logit { logit } else { probability };
    let cross_entropy = logit.max(0.0) - logit * target + ln_1_plus(t);
    let wrong = 1.0 - (p * target + (1.0 - p) * (1.0 - target));
    let alpha = ALPHA * target + (1.0 - ALPHA) * (1.0 - target);
    (probability, cross_entropy, wrong, alpha)
}

impl MaskLoss {
    /// Calls `work(y, logits, target)` for every row of the enlarged map.
    fn for_each_row(
        &self,
        map: &[f32],
        (vertical, horizontal): (&Enlarge, &Enlarge),
        target: &dyn Target,
        mut work: impl FnMut(usize, &[f32], &[f32]),
    ) {
        let (height, width) = self.size;
        let (mut logits, mut wanted) = (vec![0f32; width], vec![0f32; width]);
        let mut rows = Rows::new(map, vertical, horizontal);
        for y in 0..height {
            rows.row(y, &mut logits);
            target.row(y, &mut wanted);
            work(y, &logits, &wanted);
        }
    }

    /// Sums over one map's pixels: of focal loss, of overlap, of probability and of the target.
    fn sums(&self, map: &[f32], enlarge: (&Enlarge, &Enlarge), target: &dyn Target) -> [f32; 4] {
        let mut total = [0f64; 4];
        self.for_each_row(map, enlarge, target, |_, logits, wanted| {
            let row = vectorised!({
                sums(logits.len(), |i| {
                    let (probability, cross_entropy, wrong, alpha) = pixel(logits[i], wanted[i], self.raw_logit);
                    [alpha * wrong * wrong * cross_entropy, probability * wanted[i], probability, wanted[i]]
                })
            });
            total.iter_mut().zip(row).for_each(|(total, row)| *total += f64::from(row));
        });
        total.map(|v| v as f32)
    }
}

impl Cpu for MaskLoss {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let maps = Values::of(&inputs[0])?;
        let (vertical, horizontal) = Enlarge::of_maps(&inputs[0], self.size)?;
        let pixels = (self.size.0 * self.size.1) as f32;
        let (focal, dice): (Vec<f32>, Vec<f32>) = maps
            .par_chunks(maps.len() / self.targets.len())
            .zip(&self.targets)
            .map(|(map, target)| {
                let [focal, overlap, probability, target] = self.sums(map, (&vertical, &horizontal), &**target);
                (focal / pixels, 1.0 - (2.0 * overlap + 1.0) / (probability + target + 1.0))
            })
            .unzip();
        Ok((Tensor::from_vec([focal, dice].concat(), (2, self.targets.len()), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let map_tensor = saved.input(0)?;
        let (maps, gradient) = (Values::of(map_tensor)?, Values::of(&gradient)?);
        let (vertical, horizontal) = Enlarge::of_maps(map_tensor, self.size)?;
        let (pairs, pixels) = (self.targets.len(), (self.size.0 * self.size.1) as f32);
        let size = maps.len() / pairs;
        let mut d_maps = vec![0f32; maps.len()];
        d_maps.par_chunks_mut(size).zip(maps.par_chunks(size)).enumerate().for_each(|(pair, (d_map, map))| {
            let target = &*self.targets[pair];
            let [_, overlap, probability, area] = self.sums(map, (&vertical, &horizontal), target);
            let below = probability + area + 1.0;
            let (d_focal, d_dice) = (gradient[pair] / pixels, gradient[pairs + pair]);
            // d dice / dp = −2t/below + above/below²
            let inside = -2.0 / below * d_dice;
            let everywhere = (2.0 * overlap + 1.0) / (below * below) * d_dice;
            let mut d_row = vec![0f32; self.size.1];
            let mut gather = RowsBackward::new(d_map, &vertical, &horizontal);
            self.for_each_row(map, (&vertical, &horizontal), target, |y, logits, wanted| {
                let width = d_row.len();
                let (logits, wanted) = (&logits[..width], &wanted[..width]);
                vectorised!({
                    for i in 0..width {
                        let (logit, t) = (logits[i], wanted[i]);
                        let (p, cross_entropy, wrong, alpha) = pixel(logit, t, self.raw_logit);
                        let slope = p * (1.0 - p);
                        let d_right = (2.0 * t - 1.0) * if self.raw_logit { 1.0 } else { slope };
                        let d_loss = wrong * (wrong * (p - t) - 2.0 * d_right * cross_entropy);
                        d_row[i] = d_focal * alpha * d_loss + slope * (inside * t + everywhere);
                    }
                });
                gather.row(y, &d_row);
            });
        });
        gradients.add(0, Tensor::from_vec(d_maps, map_tensor.shape(), &Device::Cpu)?)
    }
}
