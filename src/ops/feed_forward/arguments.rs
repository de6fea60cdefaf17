//! What both forms of the feed-forward take.

/// Values of one call.
#[derive(Clone, Copy)]
pub struct Arguments<'a> {
    /// `[rows, width]`
    pub x: &'a [f32],
    /// `[batch, width]`, as scale and gate.
    pub shift: &'a [f32],
    pub scale: &'a [f32],
    pub gate: &'a [f32],
    /// `[hidden, width]` and `[hidden]`
    pub up: &'a [f32],
    pub up_bias: &'a [f32],
    /// `[width, hidden]` and `[width]`
    pub down: &'a [f32],
    pub down_bias: &'a [f32],
    /// Rows of a batch entry.
    pub tokens: usize,
    pub width: usize,
    pub hidden: usize,
}

impl<'a> Arguments<'a> {
    /// Row `row` of `data` `[rows, width]`.
    #[inline(always)]
    pub fn row<'b>(&self, data: &'b [f32], row: usize) -> &'b [f32] {
        &data[row * self.width..][..self.width]
    }

    /// The values of the batch entry that row `row` belongs to, in data `[batch, width]`.
    #[inline(always)]
    pub fn of_batch<'b>(&self, data: &'b [f32], row: usize) -> &'b [f32] {
        self.row(data, row / self.tokens)
    }
}
