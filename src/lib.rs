//! seg4diff: mask-aligned LoRA training for text-to-image diffusion transformers.

pub mod config;

pub mod autograd;
pub mod cli;
pub mod data;
pub mod demo;
pub mod distributed;
pub(crate) mod encode;
pub mod eval;
pub(crate) mod kernels;
pub mod loss;
pub mod model;
pub mod ops;
pub mod report;
pub mod sample;
pub mod system;
pub mod train;

pub use system::error::{Error, Result};
