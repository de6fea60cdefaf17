//! seg4diff: mask-aligned LoRA training for text-to-image diffusion transformers.
pub mod allocator;
pub mod error;
pub mod guard;
pub mod json;
pub mod limits;
pub mod output_folder;
pub mod patience;
pub mod plain_name;
pub mod tensor_file;
pub(crate) mod vectors;
pub mod whole_file;

pub mod config;
pub mod device;
pub mod paths;
pub mod process;
pub mod terminal;

pub mod commands;
pub mod data;
pub mod encode;
pub mod eval;
pub mod loss;
pub mod model;
pub mod ops;
pub mod report;
pub mod sample;
pub mod train;

pub use error::{Error, Result};
