//! The order of samples: which depends on the seed alone, and the position in it.
use crate::data::codec::crop::Draws;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A position in the stream of samples, to be saved and taken up again; a few dozen bytes.
///
/// An epoch goes through all shards in an order of its own. Its samples are cut into windows of `shuffle_buffer`, and
/// each window is permuted. Taking up a position rescans the headers of the shard in which its window starts, reads
/// none of the samples before it, and yields what would have come next, whatever the number of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    pub epoch: u64,
    /// Place, in the epoch's order of shards, of the shard in which the window starts.
    pub shard: u64,
    /// Items of that shard before the window.
    pub member: u64,
    /// Number of the window within the epoch.
    pub window: u64,
    /// Items drawn from the window.
    pub drawn: u64,
    /// Samples drawn so far, broken ones included, over all epochs.
    pub seen: u64,
    /// The broken ones among them.
    pub broken: u64,
    /// Whole samples drawn in this epoch.
    pub epoch_samples: u64,
    /// Those of them that brought at least one usable mask.
    pub epoch_with_masks: u64,
    /// Fingerprint of the shards' names; 0 takes up the position whatever the shards are.
    pub sources: u64,
}

/// What a random draw is for; draws for different purposes are independent.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Shards = 1,
    Window = 2,
    Augmentation = 3,
    Scene = 4,
}

pub(crate) fn keyed(seed: u64, purpose: Purpose, epoch: u64, number: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, epoch, number]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The epoch's order of `count` shards.
pub fn shard_order(seed: u64, epoch: u64, count: usize, shuffle: bool) -> Vec<usize> {
    permutation(keyed(seed, Purpose::Shards, epoch, 0), count, shuffle)
}

/// The order in which the `count` items of a window are drawn.
pub fn window_order(seed: u64, epoch: u64, window: u64, count: usize, shuffle: bool) -> Vec<usize> {
    permutation(keyed(seed, Purpose::Window, epoch, window), count, shuffle)
}

fn permutation(mut random: ChaCha8Rng, count: usize, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if shuffle {
        order.shuffle(&mut random);
    }
    order
}

/// The random draws of the sample whose key has the hash `key`, in this epoch, whenever it is drawn.
pub fn augmentation(seed: u64, epoch: u64, key: u64) -> Draws {
    let mut random = keyed(seed, Purpose::Augmentation, epoch, key);
    let mut draw = || random.random::<f64>();
    Draws { mirror: draw(), left: draw(), top: draw(), drop_caption: draw() }
}
