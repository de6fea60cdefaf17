//! The networks: MM-DiT, text encoders, autoencoder, LoRA, and the files that their weights come from.
pub mod adapters;
pub(crate) mod clip_image;
pub mod families;
mod layers;
pub mod pipeline;
pub mod projection;
pub mod text;
pub mod vae;
pub mod weights;
