//! Differentiable operations for CPU and CUDA; nothing above knows which device it is on.
pub mod conv2d;
pub mod group_norm;
