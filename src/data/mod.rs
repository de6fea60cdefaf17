//! Shards to samples: streams, annotations, captions, augmentation, batches.
//!
//! *sa1b* reads tar files (or folders) of `KEY.jpg` + `KEY.json`, *coco* folders of images with a folder of label maps
//! or panoptic PNGs, *folder* folders of `x.jpg` (or `x.png`), `x.txt`, and as label map `x.png` (beside `x.jpg`) or
//! `x_mask.png`. `Loader` streams them as batches of `Sample`.
pub mod cache;
pub mod codec;
pub mod decode;
pub mod loader;
pub mod order;
mod plan;
pub mod sources;
pub mod spill;

pub use cache::{Cache, Encoded};
pub use codec::labels::{Classes, LabelMap};
pub use codec::mask::Mask;
pub use loader::{Batch, Coverage, Loader};
pub use order::Cursor;
pub use sources::captions::Captions;
pub use sources::listing::Listing;

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
