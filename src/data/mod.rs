//! Shards to samples: streams, annotations, captions, augmentation, batches.
//!
//! *sa1b* reads tar files (or folders) of `KEY.jpg` + `KEY.json`, *coco* folders of images with a folder of label maps
//! or panoptic PNGs, *folder* folders of `x.jpg` (or `x.png`), `x.txt`, and as label map `x.png` (beside `x.jpg`) or
//! `x_mask.png`. `Loader` streams them as batches of `Sample`.
pub mod ade20k;
pub mod cache;
pub mod captions;
pub mod crop;
pub mod decode;
pub mod jpeg;
pub mod labels;
mod listing;
pub mod loader;
pub mod mask;
pub mod matlab;
pub mod order;
pub mod panoptic;
mod parquet_bounds;
pub mod photograph;
mod plan;
pub mod resize;
pub mod rle;
pub mod scenes;
pub mod shards;
pub mod spill;
mod tar_members;
pub mod unusable;

pub use cache::{Cache, Encoded};
pub use captions::Captions;
pub use labels::{Classes, LabelMap};
pub use listing::Listing;
pub use loader::{Batch, Coverage, Loader};
pub use mask::Mask;
pub use order::Cursor;

/// A training image with its prompt and masks.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Path within its source, without extension.
    pub key: String,
    /// RGB, `[resolution, resolution, 3]`; empty where a cache has what the encoders make of it.
    pub image: Vec<u8>,
    /// What the encoders make of image and prompt, where it comes from a cache.
    pub encoded: Option<Encoded>,
    /// Caption, or the class names joined by spaces; empty where caption dropout took it.
    pub prompt: String,
    /// The class names that make up the prompt, in order (ascending by label); empty where the prompt is a caption.
    pub classes: Vec<String>,
    /// The usable masks. With `classes`, one for each, in the same order; else largest first. Empty where caption
    /// dropout took the prompt, whose words they belong to.
    pub masks: Vec<Mask>,
}
