//! Where samples come from: shards, folders, captions, and the annotations of known data sets.
pub(crate) mod ade20k;
pub(crate) mod annotations;
pub mod captions;
pub(super) mod coco;
pub(super) mod listing;
pub(crate) mod shards;
pub mod tar_members;
pub(crate) mod unusable;
