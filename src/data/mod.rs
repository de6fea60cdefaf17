//! Shards to samples: streams, annotations, captions, augmentation, batches.
pub mod jpeg;
pub mod resize;
