//! Operations of the network and of the losses. Each is a folder: what it computes (`mod.rs`), and with its backward pass own
//! loops for the CPU (`cpu`), own kernels for a GPU (`cuda`), and a reference implementation in candle's operations
//! (`reference`), which serves other types and the tests. `backend` chooses between these.
mod accumulate;
mod adamw;
mod attention;
mod backend;
pub mod conv2d;
pub mod device;
mod elementary;
mod enlarge;
mod enlarged_argmax;
mod feed_forward;
mod frozen_weight;
pub mod group_norm;
mod linear;
mod mask_loss;
mod match_cost;
mod norm;
mod pixel_cross_entropy;
mod pointwise;
mod rotary;
mod score_head;

pub use adamw::{AdamWBuffers, AdamWRange, AdamWSettings, adamw, sum_of_squares};

pub use attention::{attention, attention_probability};
pub use elementary::{add, cat, mean_squared_error};
pub use enlarge::{Enlarge, Rows, enlarge};
pub use enlarged_argmax::enlarged_argmax;
pub use feed_forward::{Modulation, feed_forward, has_kernels, has_kernels_for};
pub use frozen_weight::FrozenWeight;
pub(crate) use frozen_weight::block_type;
pub use linear::{FrozenLayer, Layer, LowRank, joint_linear, linear, linear_of_window};
pub use mask_loss::{ALPHA, Target, mask_loss};
pub use match_cost::{Costs, match_cost};
pub use norm::{layer_norm_modulate, rms_norm};
pub use pixel_cross_entropy::{NO_CLASS, pixel_cross_entropy};
pub use pointwise::{gated_residual, gelu, swiglu};
pub use rotary::{RotaryTable, rotary};
pub use score_head::{CHANNELS, PARAMETERS, Precision, backward_bytes as score_head_backward_bytes, score_head};

#[cfg(test)]
pub(crate) mod tests;
