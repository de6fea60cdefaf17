//! Shards to samples: streams, annotations, captions, augmentation, batches.
pub mod resize;
