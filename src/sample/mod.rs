//! From noise to images: scheduler, guidance, pictures.
pub mod generate;
pub mod image;
pub mod noise;
pub mod scheduler;
