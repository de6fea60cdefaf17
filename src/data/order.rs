//! The order of samples, which depends on the seed alone, and the position in it.
use crate::data::codec::crop::Draws;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A position in the stream of samples, saved in checkpoints; a few dozen bytes.
///
/// Each epoch permutes the shards, cuts their samples into windows of `shuffle_buffer` and permutes each window.
/// Resuming rescans the headers of the shard in which the window starts, reads no earlier sample, and continues with
/// the next sample, for any number of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Number of the pass over the data set, from 0.
    pub epoch: u64,
    /// Index, in the epoch's order of shards, of the shard in which the window starts.
    pub shard: u64,
    /// Samples of that shard before the window.
    pub member: u64,
    /// Index of the window within the epoch.
    pub window: u64,
    /// Samples drawn from the window.
    pub drawn: u64,
    /// Samples drawn over all epochs, broken ones included.
    pub seen: u64,
    /// Broken samples over all epochs.
    pub broken: u64,
    /// Samples drawn in this epoch, without broken ones.
    pub epoch_samples: u64,
    /// Samples drawn in this epoch with at least one usable mask.
    pub epoch_with_masks: u64,
    /// Fingerprint of the shards' names; 0 skips the check on resuming.
    pub sources: u64,
}

/// The purpose of a random draw; each purpose has its own random stream.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Shards = 1,
    Window = 2,
    Augmentation = 3,
    Scene = 4,
    Share = 5,
}

pub(crate) fn keyed(seed: u64, purpose: Purpose, epoch: u64, number: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, epoch, number]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The epoch's permutation of `count` shards.
pub fn shard_order(seed: u64, epoch: u64, count: usize, shuffle: bool) -> Vec<usize> {
    permutation(keyed(seed, Purpose::Shards, epoch, 0), count, shuffle)
}

/// The permutation in which the `count` samples of a window are drawn.
pub fn window_order(seed: u64, epoch: u64, window: u64, count: usize, shuffle: bool) -> Vec<usize> {
    permutation(keyed(seed, Purpose::Window, epoch, window), count, shuffle)
}

/// Whether a share of the samples holds this one in this epoch.
pub fn is_in_share(seed: u64, epoch: u64, key: u64, share: f64) -> bool {
    keyed(seed, Purpose::Share, epoch, key).random::<f64>() < share
}

fn permutation(mut random: ChaCha8Rng, count: usize, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if shuffle {
        order.shuffle(&mut random);
    }
    order
}

/// The augmentation draws of the sample whose key hashes to `key`; independent of the order of samples.
pub fn augmentation(seed: u64, epoch: u64, key: u64) -> Draws {
    let mut random = keyed(seed, Purpose::Augmentation, epoch, key);
    let mut draw = || random.random::<f64>();
    Draws { mirror: draw(), left: draw(), top: draw(), drop_caption: draw() }
}
