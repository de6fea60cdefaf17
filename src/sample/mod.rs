//! Noise to images: scheduler, guidance, image files.
pub mod generate;
pub mod image;
pub mod noise;
pub mod scheduler;
