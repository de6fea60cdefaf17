//! Low-rank adapters: `y = Wx + b + (alpha/rank)·B(Ax)`.
use crate::ops::LowRank;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// One module's adapter, in f32.
#[derive(Clone, Debug)]
pub struct Lora {
    /// A: `[rank, in]`.
    pub down: Tensor,
    /// B: `[out, rank]`.
    pub up: Tensor,
    pub alpha: f64,
}

impl Lora {
    pub fn rank(&self) -> usize {
        self.down.dims()[0]
    }

    /// The adapter as operations take it, without gradient.
    pub fn constant(&self) -> LowRank {
        LowRank { down: self.down.clone().into(), up: self.up.clone().into(), scale: self.scale() }
    }

    /// What B(Ax) is multiplied with.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }
}

/// Adapters by the module they belong to, named as in diffusers: `transformer_blocks.3.attn.to_q`.
pub type Adapter = BTreeMap<String, Lora>;
