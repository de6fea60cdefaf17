//! Differentiable operations for CPU and CUDA; nothing above knows which device it is on.
mod adamw;
mod attention;
pub mod conv2d;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod enlarge;
mod enlarged_argmax;
mod feed_forward;
mod function;
pub mod group_norm;
pub mod kernels;
mod linear;
mod mask_loss;
mod match_cost;
mod norm;
mod pixel_cross_entropy;
mod pointwise;
mod score_head;
mod score_head_products;
mod seed;

pub use adamw::{AdamWBuffers, AdamWRange, AdamWSettings, adamw, sum_of_squares};
pub use attention::{attention, attention_probability};
pub use enlarge::{Enlarge, Rows, enlarge};
pub use enlarged_argmax::enlarged_argmax;
pub use feed_forward::{FrozenLayer, feed_forward};
pub use linear::linear;
pub use mask_loss::{ALPHA, Target, mask_loss};
pub use match_cost::{Costs, match_cost};
pub use norm::{layer_norm_modulate, rms_norm};
pub use pixel_cross_entropy::{NO_CLASS, pixel_cross_entropy};
pub use pointwise::{gated_residual, gelu};
pub use score_head::{CHANNELS, PARAMETERS, Precision, score_head};
pub use score_head_products::backward_bytes as score_head_backward_bytes;
pub use seed::seed;

#[cfg(test)]
pub(crate) mod tests;
