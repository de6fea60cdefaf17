//! Cross-entropy over classes at every pixel of a larger label map: the enlarged class maps are never stored.
use super::enlarge::{Enlarge, Rows, RowsBackward, enlarge};
use super::function::{Function, Values, apply};
use crate::ops::kernels::cpu::{exp, vectorised};
use candle_core::{D, Device, Result, Tensor, bail};
use rayon::prelude::*;

/// Label of pixels that do not count.
pub const NO_CLASS: u8 = u8::MAX;
/// Rows of the label map that a task takes.
const ROWS_A_TASK: usize = 32;

/// The weighted mean over pixels of `−log softmax(maps)[label]` (torch's `cross_entropy` with `weight` and
/// `ignore_index`): maps `[classes, h, w]`, enlarged bilinearly to `labels` `[height·width]`; out `[1]`.
///
/// `weights` has one for each class. Labels are below `classes` or [`NO_CLASS`], and one at least is a class.
pub fn pixel_cross_entropy(
    maps: &Tensor,
    labels: Vec<u8>,
    (height, width): (usize, usize),
    weights: Vec<f32>,
) -> Result<Tensor> {
    let classes = maps.dim(0)?;
    let total: f64 = labels.iter().filter_map(|l| weights.get(usize::from(*l))).map(|w| f64::from(*w)).sum();
    let known = labels.iter().all(|l| *l == NO_CLASS || usize::from(*l) < classes);
    if weights.len() != classes || classes >= usize::from(NO_CLASS) || !known || labels.len() != height * width {
        bail!("pixel cross-entropy: {} labels do not fit maps {:?}", labels.len(), maps.dims());
    }
    if total <= 0.0 {
        bail!("pixel cross-entropy: no pixel has a class");
    }
    apply(PixelCrossEntropy { labels, size: (height, width), weights, total }, &[maps])
}

pub(super) struct PixelCrossEntropy {
    pub(super) labels: Vec<u8>,
    pub(super) size: (usize, usize),
    pub(super) weights: Vec<f32>,
    /// Sum of the weights of all pixels that count.
    pub(super) total: f64,
}

impl PixelCrossEntropy {
    fn enlarge(&self, maps: &Tensor) -> Result<(Enlarge, Enlarge)> {
        let (_, h, w) = maps.dims3()?;
        Ok((Enlarge::new(h, self.size.0), Enlarge::new(w, self.size.1)))
    }

    /// Calls `work(y, class rows [classes, width], labels)` for the rows of one task.
    fn for_each_row(
        &self,
        maps: &[f32],
        (vertical, horizontal): (&Enlarge, &Enlarge),
        task: usize,
        mut work: impl FnMut(usize, &mut [f32], &[u8]),
    ) {
        let (height, width) = self.size;
        let classes = self.weights.len();
        let mut values = vec![0f32; classes * width];
        let mut rows: Vec<Rows> =
            maps.chunks_exact(maps.len() / classes).map(|map| Rows::new(map, vertical, horizontal)).collect();
        for y in task * ROWS_A_TASK..((task + 1) * ROWS_A_TASK).min(height) {
            for (rows, values) in rows.iter_mut().zip(values.chunks_exact_mut(width)) {
                rows.row(y, values);
            }
            work(y, &mut values, &self.labels[y * width..][..width]);
        }
    }

    fn tasks(&self) -> usize {
        self.size.0.div_ceil(ROWS_A_TASK)
    }

    /// Turns values into probabilities in place; returns ln Σ e^value at each pixel.
    fn softmax(&self, values: &mut [f32]) -> Vec<f32> {
        let width = self.size.1;
        vectorised!({
            let mut largest = vec![f32::NEG_INFINITY; width];
            for row in values.chunks_exact(width) {
                largest.iter_mut().zip(row).for_each(|(l, v)| *l = if *v > *l { *v } else { *l });
            }
            let mut total = vec![0f32; width];
            for row in values.chunks_exact_mut(width) {
                for x in 0..width {
                    row[x] = exp(row[x] - largest[x]);
                    total[x] += row[x];
                }
            }
            for row in values.chunks_exact_mut(width) {
                for x in 0..width {
                    row[x] /= total[x];
                }
            }
            largest.iter().zip(&total).map(|(largest, total)| largest + total.ln()).collect()
        })
    }
}

impl Function for PixelCrossEntropy {
    const NAME: &'static str = "pixel-cross-entropy";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (height, width) = self.size;
        let classes = self.weights.len();
        let values = enlarge(&inputs[0], height, width)?.reshape((classes, height * width))?;
        let values = values.broadcast_sub(&values.detach().max_keepdim(0)?)?;
        let log_probability = values.broadcast_sub(&values.exp()?.sum_keepdim(0)?.log()?)?;
        let mut wanted = vec![0f32; classes * height * width];
        for (pixel, label) in self.labels.iter().enumerate().filter(|(_, label)| **label != NO_CLASS) {
            let class = usize::from(*label);
            wanted[class * height * width + pixel] = (f64::from(self.weights[class]) / self.total) as f32;
        }
        let wanted = Tensor::from_vec(wanted, (classes, height * width), inputs[0].device())?;
        (log_probability * wanted)?.sum(D::Minus1)?.sum_keepdim(0)?.neg()
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        super::cuda::pixel_cross_entropy::forward(self, &inputs[0])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        super::cuda::pixel_cross_entropy::backward(self, of)
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let maps = Values::of(&inputs[0])?;
        let maps: &[f32] = &maps;
        let (vertical, horizontal) = self.enlarge(&inputs[0])?;
        let width = self.size.1;
        let sums: Vec<f64> = (0..self.tasks())
            .into_par_iter()
            .map(|task| {
                let mut loss = 0f64;
                self.for_each_row(maps, (&vertical, &horizontal), task, |_, values, labels| {
                    let before = values.to_vec();
                    let log_total = self.softmax(values);
                    for (x, label) in labels.iter().enumerate().filter(|(_, label)| **label != NO_CLASS) {
                        let class = usize::from(*label);
                        loss += f64::from(self.weights[class] * (log_total[x] - before[class * width + x]));
                    }
                });
                loss
            })
            .collect();
        Tensor::from_vec(vec![(sums.iter().sum::<f64>() / self.total) as f32], 1, &Device::Cpu)
    }

    fn cpu_backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (maps, grad) = (Values::of(&inputs[0])?, Values::of(grad)?[0]);
        let maps: &[f32] = &maps;
        let (vertical, horizontal) = self.enlarge(&inputs[0])?;
        let (width, size) = (self.size.1, maps.len() / self.weights.len());
        let parts: Vec<Vec<f32>> = (0..self.tasks())
            .into_par_iter()
            .map(|task| {
                let mut d_maps = vec![0f32; maps.len()];
                self.for_each_row(maps, (&vertical, &horizontal), task, |y, values, labels| {
                    self.softmax(values);
                    for (class, row) in values.chunks_exact_mut(width).enumerate() {
                        for (value, label) in row.iter_mut().zip(labels) {
                            let (hit, weight) = match self.weights.get(usize::from(*label)) {
                                Some(weight) => (usize::from(*label) == class, *weight),
                                None => (false, 0.0),
                            };
                            *value = (*value - f32::from(hit)) * (f64::from(weight * grad) / self.total) as f32;
                        }
                        RowsBackward::new(&mut d_maps[class * size..][..size], &vertical, &horizontal).row(y, row);
                    }
                });
                d_maps
            })
            .collect();
        let mut d_maps = vec![0f32; maps.len()];
        for part in parts {
            d_maps.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        Ok(vec![Some(Tensor::from_vec(d_maps, inputs[0].shape(), &Device::Cpu)?)])
    }
}
