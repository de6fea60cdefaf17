//! The networks: MM-DiT, text encoders, autoencoder, LoRA, and the files that their weights come from.
pub mod adapter_files;
pub mod clip_image;
pub mod files;
pub mod fingerprint;
mod finite;
mod layers;
pub mod lora;
pub mod mmdit;
pub mod pipeline;
pub mod projection;
pub mod shard_index;
pub mod sizes;
pub mod text;
pub mod vae;
pub mod weights;
