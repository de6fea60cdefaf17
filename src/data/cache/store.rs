//! The entries of one kind over all shards of a folder.
use super::recipe::{Key, Recipe};
use super::shard;
use crate::system::error::Result;
use crate::system::whole_file;
use std::path::{Path, PathBuf};

/// An in-memory index, 32 bytes an entry; values are read on demand.
pub struct Store {
    pub recipe: Recipe,
    shards: Vec<PathBuf>,
    /// Sorted by key.
    index: Vec<EntryLocation>,
    /// Number of the next shard to write.
    next: u32,
}

/// Where an entry is stored.
struct EntryLocation {
    /// The key's first 16 bytes.
    key: u128,
    offset: u64,
    shard: u32,
    checksum: u32,
}

impl Store {
    /// Indexes the shards of the recipe's kind in `folder`, which may have none.
    ///
    /// # Errors
    /// A shard is damaged, of another version or recipe.
    pub fn open(folder: &Path, recipe: Recipe) -> Result<Self> {
        let (mut shards, mut index) = (vec![], vec![]);
        let files = shard_files(folder, &recipe)?;
        let next = files.last().map_or(0, |(number, _)| number + 1);
        for (shard, (_, file)) in (0..).zip(files) {
            for shard::ShardEntry { key, offset, checksum } in shard::read_entries(&file, &recipe)? {
                index.push(EntryLocation { key: key.short(), offset, shard, checksum });
            }
            shards.push(file);
        }
        index.sort_unstable_by_key(|place| (place.key, place.shard));
        Ok(Self { recipe, shards, index, next })
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.place(key).is_some()
    }

    /// The values of an entry: its tensors, concatenated.
    ///
    /// # Errors
    /// The shard cannot be read or is damaged.
    pub fn get(&self, key: &Key) -> Result<Option<Vec<f32>>> {
        let Some(place) = self.place(key) else { return Ok(None) };
        let file = &self.shards[place.shard as usize];
        shard::read_values(file, &self.recipe, place.offset, place.checksum).map(Some)
    }

    /// The path of the next shard to write; advances the number.
    pub(super) fn next_shard(&mut self, folder: &Path) -> PathBuf {
        let file = folder.join(format!("{}-{:06}.safetensors", self.recipe.kind, self.next));
        self.next += 1;
        file
    }

    fn place(&self, key: &Key) -> Option<&EntryLocation> {
        let key = key.short();
        let first = self.index.partition_point(|place| place.key < key);
        self.index.get(first).filter(|place| place.key == key)
    }
}

/// The shards in `folder` with their numbers, ascending; none if the folder does not exist.
fn shard_files(folder: &Path, recipe: &Recipe) -> Result<Vec<(u32, PathBuf)>> {
    let mut files = vec![];
    for path in whole_file::entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix(recipe.kind).and_then(|rest| rest.strip_prefix('-'));
        let number = number.and_then(|rest| rest.strip_suffix(".safetensors"));
        // u32::MAX is excluded, since the next shard's number is one more.
        if let Some(number) = number.and_then(|digits| digits.parse().ok()).filter(|number| *number < u32::MAX) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}
