//! Where samples come from: shards, folders, captions, and the annotations of known data sets.
pub(crate) mod ade20k;
pub(crate) mod annotations;
pub mod byte_source;
pub mod captions;
pub(super) mod coco;
pub(crate) mod findings;
pub(crate) mod folder;
pub(crate) mod gzip_shards;
pub(crate) mod names;
pub(crate) mod pairing;
pub(crate) mod patterns;
pub mod remote;
pub(crate) mod shards;
pub mod tar_members;
mod tar_samples;
pub(crate) mod unusable;
pub(crate) mod walk;
