//! Adapters: what is trained on a frozen model, and the files that it is kept in.
//!
//! A kind of adapter is one file: [`Adapter`] says what it does to one layer, [`AdapterSettings`] how a fresh one is made,
//! and [`AdapterFiles`] what its tensors are called in files; [`KINDS`] lists the last.
pub(crate) mod adapter;
pub mod formats;
pub mod lora;
mod lora_config;
pub mod stored;
pub mod weighted;

pub use adapter::{Adapter, AdapterFiles, AdapterSettings, Adapters, Attached, TrainedAdapters};

/// The kinds of adapters whose files are read.
pub const KINDS: [&dyn AdapterFiles; 1] = [&lora::LoraFiles];
