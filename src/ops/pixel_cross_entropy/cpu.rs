//! The cross-entropy in f32 in the host's memory, a row of the label map at a time.
use super::{NO_CLASS, PixelCrossEntropy};
use crate::kernels::cpu::{exp, vectorised};
use crate::kernels::memory::Values;
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
use crate::ops::enlarge::{Enlarge, Rows, RowsBackward};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Rows of the label map that a task takes.
const ROWS_A_TASK: usize = 32;

impl PixelCrossEntropy {
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

impl Cpu for PixelCrossEntropy {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let maps = Values::of(&inputs[0])?;
        let (vertical, horizontal) = Enlarge::of_maps(&inputs[0], self.size)?;
        let width = self.size.1;
        let sums: Vec<f64> = (0..self.size.0.div_ceil(ROWS_A_TASK))
            .into_par_iter()
            .map(|task| {
                let mut loss = 0f64;
                self.for_each_row(&maps, (&vertical, &horizontal), task, |_, values, labels| {
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
        Ok((Tensor::from_vec(vec![(sums.iter().sum::<f64>() / self.total) as f32], 1, &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let map_tensor = saved.input(0)?;
        let (maps, gradient) = (Values::of(map_tensor)?, Values::of(&gradient)?[0]);
        let (vertical, horizontal) = Enlarge::of_maps(map_tensor, self.size)?;
        let (width, size) = (self.size.1, maps.len() / self.weights.len());
        let parts: Vec<Vec<f32>> = (0..self.size.0.div_ceil(ROWS_A_TASK))
            .into_par_iter()
            .map(|task| {
                let mut d_maps = vec![0f32; maps.len()];
                self.for_each_row(&maps, (&vertical, &horizontal), task, |y, values, labels| {
                    self.softmax(values);
                    for (class, row) in values.chunks_exact_mut(width).enumerate() {
                        for (value, label) in row.iter_mut().zip(labels) {
                            let label = usize::from(*label);
                            let weight = self.weights.get(label).copied().unwrap_or(0.0);
                            *value = (*value - f32::from(label == class))
                                * (f64::from(weight * gradient) / self.total) as f32;
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
        gradients.add(0, Tensor::from_vec(d_maps, map_tensor.shape(), &Device::Cpu)?)
    }
}
