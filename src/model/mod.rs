//! The networks: MM-DiT, text encoders, autoencoder, LoRA, and the files that their weights come from.
pub mod adapter_files;
pub mod lora;
pub mod weights;
