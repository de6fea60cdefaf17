//! Adds what a cache lacks, shard by shard.
use super::recipe::{Key, Recipe};
use super::shard;
use super::store::Store;
use crate::system::error::Result;
use crate::system::limits::CACHE_ENTRIES;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Bytes of a shard, if no other number is asked for: what a killed command loses at most.
pub const SHARD_BYTES: u64 = 64 << 20;

/// Writes entries of one kind into a folder. Shards are whole or absent and are filled in the order in which entries
/// come, so that a command that was killed and started again writes the same files. Memory: one shard, and 32 bytes
/// an entry.
pub struct Writer {
    folder: PathBuf,
    store: Store,
    /// Entries of a shard.
    capacity: usize,
    /// Those that the next shard will hold.
    pending: BTreeMap<Key, Vec<f32>>,
    /// Those that were added, written or not.
    added: HashSet<Key>,
}

impl Writer {
    /// Goes on with what is in `folder`, in shards of about `shard_bytes`.
    ///
    /// # Errors
    /// A shard that is there is damaged, of another version or recipe.
    pub fn open(folder: &Path, recipe: Recipe, shard_bytes: u64) -> Result<Self> {
        let capacity = ((shard_bytes / recipe.bytes().max(1)).max(1) as usize).min(CACHE_ENTRIES);
        let store = Store::open(folder, recipe)?;
        Ok(Self { folder: folder.to_path_buf(), store, capacity, pending: BTreeMap::new(), added: HashSet::new() })
    }

    pub fn recipe(&self) -> &Recipe {
        self.store.recipe()
    }

    /// Whether the entry is there or was added.
    pub fn contains(&self, key: &Key) -> bool {
        self.added.contains(key) || self.store.contains(key)
    }

    /// Entries that were there before.
    pub fn found(&self) -> usize {
        self.store.len()
    }

    /// Entries that were added.
    pub fn added(&self) -> usize {
        self.added.len()
    }

    /// Adds an entry, and writes a shard when that fills it.
    ///
    /// # Errors
    /// The shard cannot be written; those before it stay as they are.
    pub fn add(&mut self, key: Key, values: Vec<f32>) -> Result<()> {
        if self.contains(&key) {
            return Ok(());
        }
        self.added.insert(key);
        self.pending.insert(key, values);
        if self.pending.len() >= self.capacity { self.write() } else { Ok(()) }
    }

    /// Writes what is left.
    pub fn finish(&mut self) -> Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<()> {
        let file = self.store.next_shard(&self.folder);
        shard::write(&file, self.store.recipe(), &self.pending)?;
        self.pending.clear();
        Ok(())
    }
}
