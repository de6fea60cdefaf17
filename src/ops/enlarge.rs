//! Bilinear enlargement with half-pixel centres, one dimension at a time (torch's `interpolate(mode="bilinear",
//! align_corners=False)`).
use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;

/// For every place of the larger side, the two places of the smaller one that it lies between.
pub struct Enlarge {
    low: Vec<usize>,
    high: Vec<usize>,
    /// Weight of `high`.
    pub(super) weight: Vec<f32>,
    from: usize,
}

impl Enlarge {
    /// From `from` values to `to` values.
    pub fn new(from: usize, to: usize) -> Self {
        let scale = from as f32 / to as f32;
        let mut enlarge = Self { low: vec![], high: vec![], weight: vec![], from };
        for place in 0..to {
            let source = ((place as f32 + 0.5) * scale - 0.5).max(0.0);
            let low = (source as usize).min(from - 1);
            enlarge.low.push(low);
            enlarge.high.push((low + 1).min(from - 1));
            enlarge.weight.push(source - low as f32);
        }
        enlarge
    }

    /// From maps `[maps, h, w]` to a size: of rows and of columns.
    pub(super) fn of_maps(maps: &Tensor, (height, width): (usize, usize)) -> Result<(Self, Self)> {
        let (_, h, w) = maps.dims3()?;
        Ok((Self::new(h, height), Self::new(w, width)))
    }

    /// (low, high, weight of high) at `place`.
    pub fn at(&self, place: usize) -> (usize, usize, f32) {
        (self.low[place], self.high[place], self.weight[place])
    }

    /// Runs of places that lie between the same two of the smaller side: (low, high, places).
    pub(super) fn runs(&self) -> Vec<(usize, usize, Range<usize>)> {
        let mut runs: Vec<(usize, usize, Range<usize>)> = vec![];
        for (place, (&low, &high)) in self.low.iter().zip(&self.high).enumerate() {
            match runs.last_mut() {
                Some(run) if (run.0, run.1) == (low, high) => run.2.end = place + 1,
                _ => runs.push((low, high, place..place + 1)),
            }
        }
        runs
    }

    /// Enlarges one row.
    pub fn row(&self, small: &[f32], large: &mut [f32]) {
        for (place, out) in large.iter_mut().enumerate() {
            let (low, high, weight) = self.at(place);
            *out = small[low] * (1.0 - weight) + small[high] * weight;
        }
    }

    /// Adds the gradient of an enlarged row to that of the small row.
    pub fn row_backward(&self, d_large: &[f32], d_small: &mut [f32]) {
        for (place, d) in d_large.iter().enumerate() {
            let (low, high, weight) = self.at(place);
            d_small[low] += d * (1.0 - weight);
            d_small[high] += d * weight;
        }
    }

    /// The same as a matrix `[to, from]`.
    pub fn matrix(&self, device: &Device) -> Result<Tensor> {
        let mut matrix = vec![0f32; self.low.len() * self.from];
        for (place, row) in matrix.chunks_exact_mut(self.from).enumerate() {
            let (low, high, weight) = self.at(place);
            row[low] += 1.0 - weight;
            row[high] += weight;
        }
        Tensor::from_vec(matrix, (self.low.len(), self.from), device)
    }
}

/// Rows of a map `[h, w]` enlarged to `[height, width]`, one at a time.
pub struct Rows<'a> {
    map: &'a [f32],
    vertical: &'a Enlarge,
    horizontal: &'a Enlarge,
    between: Vec<f32>,
}

impl<'a> Rows<'a> {
    /// Of `map`, `[vertical.from, horizontal.from]`.
    pub fn new(map: &'a [f32], vertical: &'a Enlarge, horizontal: &'a Enlarge) -> Self {
        Self { map, vertical, horizontal, between: vec![0.0; horizontal.from] }
    }

    /// Writes row `y` of the enlarged map into `out`.
    pub fn row(&mut self, y: usize, out: &mut [f32]) {
        let (low, high, weight) = self.vertical.at(y);
        let width = self.horizontal.from;
        let (low, high) = (&self.map[low * width..][..width], &self.map[high * width..][..width]);
        for (x, value) in self.between.iter_mut().enumerate() {
            *value = low[x] * (1.0 - weight) + high[x] * weight;
        }
        self.horizontal.row(&self.between, out);
    }
}

/// Gathers gradients of enlarged rows into that of the map.
pub struct RowsBackward<'a> {
    d_map: &'a mut [f32],
    vertical: &'a Enlarge,
    horizontal: &'a Enlarge,
    between: Vec<f32>,
}

impl<'a> RowsBackward<'a> {
    pub fn new(d_map: &'a mut [f32], vertical: &'a Enlarge, horizontal: &'a Enlarge) -> Self {
        Self { d_map, vertical, horizontal, between: vec![0.0; horizontal.from] }
    }

    pub fn row(&mut self, y: usize, d_row: &[f32]) {
        self.between.fill(0.0);
        self.horizontal.row_backward(d_row, &mut self.between);
        let (low, high, weight) = self.vertical.at(y);
        let width = self.between.len();
        for (x, d) in self.between.iter().enumerate() {
            self.d_map[low * width + x] += d * (1.0 - weight);
            self.d_map[high * width + x] += d * weight;
        }
    }
}

/// Enlarges maps `[maps, h, w]` to `[maps, height, width]` by matrix products: on any device, differentiable.
pub fn enlarge(maps: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (count, h, w) = maps.dims3()?;
    let maps = maps.to_dtype(DType::F32)?;
    let horizontal = Enlarge::new(w, width).matrix(maps.device())?;
    let vertical = Enlarge::new(h, height).matrix(maps.device())?;
    let wide = maps.reshape((count * h, w))?.matmul(&horizontal.t()?)?.reshape((count, h, width))?;
    vertical.unsqueeze(0)?.expand((count, height, h))?.contiguous()?.matmul(&wide)
}
