//! Tensors `[batch, tokens, heads·head_dim]` head by head: a head, or some tokens of one, is a task.
use super::super::Sizes;
use crate::kernels::matrix::{Memory, View};
use candle_core::{Device, Result, Tensor};

impl Sizes {
    /// Added to the last key's score, in units of log 2: equal keys are one key whose exponential counts as often.
    pub fn last_key_bias(&self) -> f32 {
        (self.last_key_count as f32).log2()
    }

    /// The rows from `start` on of one batch entry and head, in `data` `[batch, tokens, width]`.
    pub fn head<'a>(&self, data: &'a [f32], tokens: usize, (batch, head): (usize, usize), start: usize) -> View<'a> {
        let offset = (batch * tokens + start) * self.width + head * self.head_dim();
        View { data: &data[offset..], row_stride: self.width, column_stride: 1 }
    }

    /// (batch entry, head) pairs in order.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        (0..self.batch).flat_map(|batch| (0..self.heads).map(move |head| (batch, head))).collect()
    }
}

/// A tensor `[batch, tokens, width]` whose heads are written by different tasks.
pub struct ByHead {
    values: Vec<f32>,
    first: Memory,
    tokens: usize,
    sizes: Sizes,
}

/// The place of one head's rows.
#[derive(Clone, Copy)]
pub struct HeadRows {
    first: Memory,
    width: usize,
    head_dim: usize,
}

impl HeadRows {
    /// # Safety
    /// The row is one of the head's, which one task has.
    pub unsafe fn row<'a>(self, row: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.from(row * self.width), self.head_dim) }
    }

    /// Writes all rows, which are `values` one after the other.
    ///
    /// # Safety
    /// As many rows are the head's, which one task has.
    pub unsafe fn write(self, values: &[f32]) {
        for (r, values) in values.chunks_exact(self.head_dim).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.row(r) }.copy_from_slice(values);
        }
    }
}

impl ByHead {
    pub fn new(sizes: Sizes, tokens: usize) -> Self {
        let mut values = Vec::with_capacity(sizes.batch * tokens * sizes.width);
        Self { first: Memory(values.as_mut_ptr()), values, tokens, sizes }
    }

    /// The rows of a batch entry and head, from `start` on.
    pub fn rows(&self, (batch, head): (usize, usize), start: usize) -> HeadRows {
        let (width, head_dim) = (self.sizes.width, self.sizes.head_dim());
        let offset = (batch * self.tokens + start) * width + head * head_dim;
        HeadRows { first: Memory(self.first.from(offset)), width, head_dim }
    }

    /// # Safety
    /// All heads' rows have been written.
    pub unsafe fn into_tensor(mut self) -> Result<Tensor> {
        let shape = (self.sizes.batch, self.tokens, self.sizes.width);
        // SAFETY: the caller's promise.
        unsafe { self.values.set_len(self.sizes.batch * self.tokens * self.sizes.width) };
        Tensor::from_vec(self.values, shape, &Device::Cpu)
    }
}
