//! The model families: what is known of each denoiser alone.
pub mod sd3;
