//! The data pipeline: shards, annotations, captions, augmentation, batches.
//!
//! Formats: *sa1b* reads tar files (or folders) of `KEY.jpg` + `KEY.json`; *coco* reads folders of images and a folder
//! of label maps or panoptic PNGs; *folder* reads folders of `x.jpg` (or `x.png`), `x.txt`, and a label map `x.png`
//! (beside `x.jpg`) or `x_mask.png`. `Loader` streams batches of `Sample`.
pub(crate) mod cache;
pub mod codec;
mod data_set;
pub(crate) mod decode;
pub mod inventory;
pub(crate) mod keyed_temp_store;
pub(crate) mod loader;
mod mask_form;
pub(crate) mod masks;
pub(crate) mod order;
mod plan;
mod record;
pub mod round;
pub(crate) mod sample_reader;
pub mod share;
pub mod sources;

pub use cache::{Cache, CachedSample};
pub use codec::labels::{Classes, LabelMap};
pub use codec::mask::Mask;
pub use data_set::DataSet;
pub use inventory::Inventory;
pub use loader::{Batch, Loader};
pub use order::Cursor;
pub use record::{DataFingerprint, DataRecord};
pub use sources::captions::Captions;

/// A training image with its prompt and masks.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Path within the source, without extension.
    pub key: String,
    /// Number of the pass over the data set, from 0.
    pub epoch: u64,
    /// RGB, `[resolution, resolution, 3]`; empty if `encoded` is set.
    pub image: Vec<u8>,
    /// Cached latents and text embedding.
    pub encoded: Option<CachedSample>,
    /// The caption, or the class names joined by spaces; empty after caption dropout.
    pub prompt: String,
    /// The prompt's class names by ascending label; empty if the prompt is a caption.
    pub classes: Vec<String>,
    /// The usable masks: one for each of `classes`, in their order, or by descending area if there are no classes.
    /// Empty after caption dropout, since masks belong to words of the prompt.
    pub masks: Vec<Mask>,
    /// Whether caption dropout left prompt and masks out.
    pub is_dropped: bool,
}
