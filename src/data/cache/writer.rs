//! Writes missing cache entries, shard by shard.
use super::recipe::{Key, Recipe};
use super::shard;
use super::store::Store;
use crate::system::error::Result;
use crate::system::limits::CACHE_ENTRIES;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Default size of a shard in bytes; a killed command loses at most one shard.
pub const SHARD_BYTES: u64 = 64 << 20;

/// Writes entries of one kind into a folder. Shards are written atomically and filled in the order in which entries
/// arrive, so that a command that is killed and restarted writes the same files. Memory: one shard, and 32 bytes an
/// entry.
pub struct Writer {
    folder: PathBuf,
    store: Store,
    /// Entries in a full shard.
    capacity: usize,
    /// Entries of the next shard.
    pending: BTreeMap<Key, Vec<f32>>,
    /// Keys added by this writer, written or pending.
    added: HashSet<Key>,
}

impl Writer {
    /// Continues the cache in `folder`, in shards of about `shard_bytes`.
    ///
    /// # Errors
    /// An existing shard is damaged, or of another version or recipe.
    pub fn open(folder: &Path, recipe: Recipe, shard_bytes: u64) -> Result<Self> {
        let capacity = ((shard_bytes / recipe.bytes().max(1)).max(1) as usize).min(CACHE_ENTRIES);
        let store = Store::open(folder, recipe)?;
        Ok(Self { folder: folder.to_path_buf(), store, capacity, pending: BTreeMap::new(), added: HashSet::new() })
    }

    pub fn recipe(&self) -> &Recipe {
        &self.store.recipe
    }

    /// Whether the entry was found or added.
    pub fn contains(&self, key: &Key) -> bool {
        self.added.contains(key) || self.store.contains(key)
    }

    /// Number of entries found on opening.
    pub fn found(&self) -> usize {
        self.store.len()
    }

    /// Number of entries added.
    pub fn added(&self) -> usize {
        self.added.len()
    }

    /// Adds an entry, and writes the shard if that fills it.
    ///
    /// # Errors
    /// The shard cannot be written; earlier shards stay valid.
    pub fn add(&mut self, key: Key, values: Vec<f32>) -> Result<()> {
        if self.contains(&key) {
            return Ok(());
        }
        self.added.insert(key);
        self.pending.insert(key, values);
        if self.pending.len() >= self.capacity { self.write() } else { Ok(()) }
    }

    /// Counts an entry that another process writes as added.
    pub fn note(&mut self, key: Key) {
        if !self.contains(&key) {
            self.added.insert(key);
        }
    }

    /// Writes the pending entries.
    pub fn finish(&mut self) -> Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<()> {
        let file = self.store.next_shard(&self.folder);
        shard::write(&file, &self.store.recipe, &self.pending)?;
        self.pending.clear();
        Ok(())
    }
}
