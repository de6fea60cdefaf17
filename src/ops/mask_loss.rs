//! Focal and dice loss of maps against masks of a larger size: the enlarged maps are never stored.
use super::enlarge::{Enlarge, Rows, RowsBackward, enlarge};
use super::function::{Function, Values, apply};
use crate::ops::kernels::cpu::{exp, sums, vectorised};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// Focal loss: weight of pixels inside the mask (RetinaNet's α, with γ = 2).
pub const ALPHA: f32 = 0.25;

/// A binary mask, given row by row.
pub trait Target: Send + Sync {
    /// (height, width) in pixels.
    fn size(&self) -> (usize, usize);
    /// Row `y` as zeros and ones.
    fn row(&self, y: usize, out: &mut [f32]);
}

/// Focal loss (mean over pixels) and dice loss `1 − (2Σpt + 1)/(Σp + Σt + 1)` of each map with its mask.
///
/// maps `[pairs, h, w]`, enlarged bilinearly to the masks' size (the same for all); out `[2, pairs]`: focal, dice.
/// With `raw_logit`, focal's probability is the logit itself, as in Seg4Diff's released code.
pub fn mask_loss(maps: &Tensor, targets: Vec<Arc<dyn Target>>, raw_logit: bool) -> Result<Tensor> {
    if maps.dim(0)? != targets.len() || targets.is_empty() {
        bail!("mask loss: maps {:?}, {} masks", maps.dims(), targets.len());
    }
    let size = targets[0].size();
    if targets.iter().any(|t| t.size() != size) {
        bail!("mask loss: masks differ in size");
    }
    apply(MaskLoss { targets, size, raw_logit }, &[maps])
}

pub(super) struct MaskLoss {
    pub(super) targets: Vec<Arc<dyn Target>>,
    pub(super) size: (usize, usize),
    pub(super) raw_logit: bool,
}

/// Sums over one map's pixels.
#[derive(Clone, Copy, Default)]
struct Sums {
    focal: f32,
    overlap: f32,
    probability: f32,
    target: f32,
}

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

/// What both losses are made of, at one pixel.
struct Pixel {
    /// Sigmoid of the logit.
    probability: f32,
    cross_entropy: f32,
    /// Focal's `1 − p_t`.
    wrong: f32,
    alpha: f32,
}

/// One exponential serves all.
#[inline(always)]
fn pixel(logit: f32, target: f32, raw_logit: bool) -> Pixel {
    let t = exp(-logit.abs());
    let larger = 1.0 / (1.0 + t);
    let probability = if logit >= 0.0 { larger } else { t * larger };
    let p = if raw_logit { logit } else { probability };
    Pixel {
        probability,
        cross_entropy: logit.max(0.0) - logit * target + ln_1_plus(t),
        wrong: 1.0 - (p * target + (1.0 - p) * (1.0 - target)),
        alpha: ALPHA * target + (1.0 - ALPHA) * (1.0 - target),
    }
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

    fn sums(&self, map: &[f32], enlarge: (&Enlarge, &Enlarge), target: &dyn Target) -> Sums {
        let mut total = [0f64; 4];
        self.for_each_row(map, enlarge, target, |_, logits, wanted| {
            let row = vectorised!({
                sums(logits.len(), |i| {
                    let Pixel { probability, cross_entropy, wrong, alpha } =
                        pixel(logits[i], wanted[i], self.raw_logit);
                    [alpha * wrong * wrong * cross_entropy, probability * wanted[i], probability, wanted[i]]
                })
            });
            total.iter_mut().zip(row).for_each(|(total, row)| *total += f64::from(row));
        });
        let [focal, overlap, probability, target] = total.map(|v| v as f32);
        Sums { focal, overlap, probability, target }
    }

    fn enlarge(&self, maps: &Tensor) -> Result<(Enlarge, Enlarge)> {
        let (_, h, w) = maps.dims3()?;
        Ok((Enlarge::new(h, self.size.0), Enlarge::new(w, self.size.1)))
    }
}

impl Function for MaskLoss {
    const NAME: &'static str = "mask-loss";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (height, width) = self.size;
        let pairs = self.targets.len();
        let logits = enlarge(&inputs[0], height, width)?.reshape((pairs, height * width))?;
        let mut wanted = vec![0f32; pairs * height * width];
        for (r, row) in wanted.chunks_exact_mut(width).enumerate() {
            self.targets[r / height].row(r % height, row);
        }
        let t = Tensor::from_vec(wanted, (pairs, height * width), logits.device())?;
        let cross_entropy = ((logits.relu()? - (&logits * &t)?)? + ((logits.abs()?.neg()?.exp()? + 1.0)?.log()?))?;
        let sigmoid = ((logits.neg()?.exp()? + 1.0)?).recip()?;
        let p = if self.raw_logit { &logits } else { &sigmoid };
        let outside = (1.0 - &t)?;
        let wrong = (1.0 - ((p * &t)? + ((1.0 - p)? * &outside)?)?)?;
        let alpha = ((&t * f64::from(ALPHA))? + (&outside * f64::from(1.0 - ALPHA))?)?;
        let focal = (alpha * wrong.sqr()? * cross_entropy)?.mean(1)?;
        let above = (((&sigmoid * &t)?.sum(1)? * 2.0)? + 1.0)?;
        let below = ((sigmoid.sum(1)? + t.sum(1)?)? + 1.0)?;
        Tensor::stack(&[focal, (1.0 - (above / below)?)?], 0)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        super::cuda::mask_loss::forward(&inputs[0], &self.targets, self.size, self.raw_logit)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        super::cuda::mask_loss::backward(of, self.size, self.raw_logit)
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let maps = Values::of(&inputs[0])?;
        let (vertical, horizontal) = self.enlarge(&inputs[0])?;
        let pixels = (self.size.0 * self.size.1) as f32;
        let (focal, dice): (Vec<f32>, Vec<f32>) = maps
            .par_chunks(maps.len() / self.targets.len())
            .zip(&self.targets)
            .map(|(map, target)| {
                let sums = self.sums(map, (&vertical, &horizontal), &**target);
                let dice = 1.0 - (2.0 * sums.overlap + 1.0) / (sums.probability + sums.target + 1.0);
                (sums.focal / pixels, dice)
            })
            .unzip();
        Tensor::from_vec([focal, dice].concat(), (2, self.targets.len()), &Device::Cpu)
    }

    fn cpu_backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (maps, grad) = (Values::of(&inputs[0])?, Values::of(grad)?);
        let (maps, grad): (&[f32], &[f32]) = (&maps, &grad);
        let (vertical, horizontal) = self.enlarge(&inputs[0])?;
        let (pairs, pixels) = (self.targets.len(), (self.size.0 * self.size.1) as f32);
        let size = maps.len() / pairs;
        let mut d_maps = vec![0f32; maps.len()];
        d_maps.par_chunks_mut(size).zip(maps.par_chunks(size)).enumerate().for_each(|(pair, (d_map, map))| {
            let target = &*self.targets[pair];
            let sums = self.sums(map, (&vertical, &horizontal), target);
            let below = sums.probability + sums.target + 1.0;
            let (d_focal, d_dice) = (grad[pair] / pixels, grad[pairs + pair]);
            // d dice / dp = −2t/below + above/below²
            let inside = -2.0 / below * d_dice;
            let everywhere = (2.0 * sums.overlap + 1.0) / (below * below) * d_dice;
            let mut d_row = vec![0f32; self.size.1];
            let mut gather = RowsBackward::new(d_map, &vertical, &horizontal);
            self.for_each_row(map, (&vertical, &horizontal), target, |y, logits, wanted| {
                let width = d_row.len();
                let (logits, wanted) = (&logits[..width], &wanted[..width]);
                vectorised!({
                    for i in 0..width {
                        let (logit, t) = (logits[i], wanted[i]);
                        let Pixel { probability: p, cross_entropy, wrong, alpha } = pixel(logit, t, self.raw_logit);
                        let slope = p * (1.0 - p);
                        let d_right = (2.0 * t - 1.0) * if self.raw_logit { 1.0 } else { slope };
                        let d_loss = wrong * (wrong * (p - t) - 2.0 * d_right * cross_entropy);
                        d_row[i] = d_focal * alpha * d_loss + slope * (inside * t + everywhere);
                    }
                });
                gather.row(y, &d_row);
            });
        });
        Ok(vec![Some(Tensor::from_vec(d_maps, inputs[0].shape(), &Device::Cpu)?)])
    }
}
