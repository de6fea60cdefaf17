//! Adapters: what is trained on a frozen model, and the files that it is kept in.
pub mod formats;
pub mod lora;
