//! seg4diff: mask-aligned LoRA training for text-to-image diffusion transformers.
//!
//! A folder per stage that data flows through; dependencies point down this list, never up.
pub mod error;

pub mod config;
pub mod data;
pub mod model;
pub mod ops;
pub mod report;
pub mod sample;

pub use error::{Error, Result};
