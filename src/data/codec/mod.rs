//! Decoding, resizing and cropping of pictures, masks and label maps.
pub mod crop;
pub mod jpeg;
pub mod labels;
pub(crate) mod mask;
pub mod matlab;
pub mod palette;
pub mod photograph;
pub mod polygon;
pub mod resize;
pub mod rle;
pub(crate) mod stored_mask;
