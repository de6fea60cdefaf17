//! The entries of one kind, over all shards of a folder.
use super::recipe::{Key, Recipe};
use super::shard;
use crate::system::error::{Error, Result};
use std::path::{Path, PathBuf};

/// An index in memory, 32 bytes an entry; what entries hold is read when it is asked for.
pub struct Store {
    recipe: Recipe,
    shards: Vec<PathBuf>,
    /// Sorted by key.
    index: Vec<Place>,
    /// Number of the shard after the last.
    next: u32,
}

/// Where an entry lies.
struct Place {
    /// The first half of the key.
    key: u128,
    offset: u64,
    shard: u32,
    checksum: u32,
}

impl Store {
    /// Indexes the shards of the recipe's kind in `folder`; there may be none.
    ///
    /// # Errors
    /// A shard is damaged, of another version or recipe.
    pub fn open(folder: &Path, recipe: Recipe) -> Result<Self> {
        let (mut shards, mut index) = (vec![], vec![]);
        let files = shard_files(folder, &recipe)?;
        let next = files.last().map_or(0, |(number, _)| number + 1);
        for (place, (_, file)) in (0..).zip(files) {
            let entries = shard::read_entries(&file, &recipe)?.into_iter();
            let of_entry = |entry: shard::Entry| Place {
                key: entry.key.short(),
                offset: entry.offset,
                shard: place,
                checksum: entry.checksum,
            };
            index.extend(entries.map(of_entry));
            shards.push(file);
        }
        index.sort_unstable_by_key(|place| (place.key, place.shard));
        Ok(Self { recipe, shards, index, next })
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.place(key).is_some()
    }

    /// The values of an entry: its tensors one after the other.
    ///
    /// # Errors
    /// Its shard cannot be read, or is damaged there.
    pub fn get(&self, key: &Key) -> Result<Option<Vec<f32>>> {
        let Some(place) = self.place(key) else { return Ok(None) };
        let file = &self.shards[place.shard as usize];
        shard::read_values(file, &self.recipe, place.offset, place.checksum).map(Some)
    }

    /// The file of the shard after the last, and the number after that.
    pub(super) fn next_shard(&mut self, folder: &Path) -> PathBuf {
        let file = folder.join(format!("{}-{:06}.safetensors", self.recipe.kind.name(), self.next));
        self.next += 1;
        file
    }

    fn place(&self, key: &Key) -> Option<&Place> {
        let key = key.short();
        let first = self.index.partition_point(|place| place.key < key);
        self.index.get(first).filter(|place| place.key == key)
    }
}

/// The shards in `folder` with their numbers, ascending; none where there is no such folder.
fn shard_files(folder: &Path, recipe: &Recipe) -> Result<Vec<(u32, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::file(folder, e)),
    };
    let mut files = vec![];
    for entry in entries {
        let path = entry.map_err(|e| Error::file(folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix(recipe.kind.name()).and_then(|rest| rest.strip_prefix('-'));
        let number = number.and_then(|rest| rest.strip_suffix(".safetensors"));
        // Not u32::MAX: there must be one after it.
        if let Some(number) = number.and_then(|digits| digits.parse().ok()).filter(|number| *number < u32::MAX) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}
