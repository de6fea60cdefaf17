//! Files and values of a sample: pictures, masks, label maps, and what crops and resizes them.
pub mod crop;
pub mod jpeg;
pub mod labels;
pub mod mask;
pub mod matlab;
pub mod photograph;
pub mod resize;
pub mod rle;
