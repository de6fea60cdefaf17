//! Where samples come from: shards, folders, captions, and the annotations of known data sets.
pub mod ade20k;
pub mod captions;
pub(super) mod listing;
pub mod panoptic;
mod parquet_bounds;
pub mod shards;
pub mod tar_members;
pub mod unusable;
