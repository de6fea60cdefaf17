//! The cache of precomputed latents and text embeddings.
//!
//! A cache is a folder of safetensors shards, `latents-000000.safetensors` … and `text-000000.safetensors` …. Entries
//! are keyed by their inputs, never by a sample's name: latents by the SHA-256 of the image file's bytes (of a picture with
//! transparency, with the colour behind it), the flip, and
//! the recipe (autoencoder, resolution, crop); a text embedding by the prompt's text and the recipe (encoders,
//! tokenizers, number of tokens, dtype). A changed image, caption or model has another key, so that a stale entry is
//! never found, and entries do not name the samples that use them.
mod recipe;
mod shard;
mod store;
mod writer;

pub use recipe::{Digest, Key, Recipe};
pub use store::Store;
pub use writer::{SHARD_BYTES, Writer};

use crate::system::error::{Error, Result};
use std::path::{Path, PathBuf};

/// A sample's cached values.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedSample {
    /// `[channels, height, width]`, the autoencoder's output.
    pub latents: Vec<f32>,
    /// The tensors of the text recipe, concatenated.
    pub text: Vec<f32>,
}

/// A cache open for reading. Memory: 32 bytes an entry, so 96 for an image with both flips and its caption.
pub struct Cache {
    folder: PathBuf,
    latents: Store,
    text: Store,
    /// The command that fills the cache, for error messages.
    refill: String,
}

impl Cache {
    /// Opens the cache in `folder`, which must match both recipes; `refill` is the command that fills it.
    ///
    /// # Errors
    /// There is no cache; a shard is damaged or of another version; the recipes differ.
    pub fn open(folder: &Path, latents: Recipe, text: Recipe, refill: String) -> Result<Self> {
        let (latents, text) = (Store::open(folder, latents)?, Store::open(folder, text)?);
        if latents.len() == 0 || text.len() == 0 {
            return Err(Error::file(folder, format!("holds no whole cache; fill it by\n  {refill}")));
        }
        Ok(Self { folder: folder.to_path_buf(), latents, text, refill })
    }

    /// Numbers of latent entries and text entries.
    pub fn entries(&self) -> (usize, usize) {
        (self.latents.len(), self.text.len())
    }

    /// Bytes of a sample's latents and text embedding.
    pub fn sample_bytes(&self) -> u64 {
        self.latents.recipe.bytes() + self.text.recipe.bytes()
    }

    /// The latents of an image, `None` if the cache lacks them.
    pub fn latents(&self, image: &Digest, mirrored: bool) -> Result<Option<Vec<f32>>> {
        self.latents.get(&self.latents.recipe.latents_key(image, mirrored))
    }

    /// The embedding of a prompt, `None` if the cache lacks it.
    pub fn text(&self, prompt: &str) -> Result<Option<Vec<f32>>> {
        self.text.get(&self.text.recipe.text_key(prompt))
    }

    /// The error that the cache has no entry for `what` (latents or text) of the sample `name`.
    pub fn lacks(&self, what: &str, name: &str) -> Error {
        let (folder, refill) = (self.folder.display(), &self.refill);
        Error::Failed(format!(
            "{name}: the cache {folder} lacks {what}: it is new, or changed since the cache was filled; fill what is \
             missing by\n  {refill}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn recipe(model: &str) -> Recipe {
        let facts = BTreeMap::from([("encoder".to_string(), model.to_string())]);
        Recipe { kind: "text", facts, tensors: vec![("context", vec![3, 2]), ("pooled", vec![2])] }
    }

    fn values(number: usize) -> Vec<f32> {
        (0..8).map(|value| (number * 10 + value) as f32 + 0.1).collect()
    }

    fn prompt(number: usize) -> Key {
        recipe("a").text_key(&format!("prompt {number}"))
    }

    /// Fills a folder with entries 0 to `count`, two a shard.
    fn fill(folder: &Path, count: usize) -> Writer {
        let mut writer = Writer::open(folder, recipe("a"), 64).expect("writer");
        (0..count).for_each(|number| writer.add(prompt(number), values(number)).expect("add"));
        writer
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_added_is_found_whenever_writing_ended() {
        let whole = tempfile::tempdir().expect("folder");
        fill(whole.path(), 5).finish().expect("finish");
        let shards = ["text-000000.safetensors", "text-000001.safetensors", "text-000002.safetensors"];
        assert_eq!(names(whole.path()), shards);
        for ended in 0..5 {
            let folder = tempfile::tempdir().expect("folder");
            // Dropped without `finish`, as in a killed process.
            drop(fill(folder.path(), ended));
            let mut writer = fill(folder.path(), 5);
            assert_eq!((writer.found(), writer.added()), (ended / 2 * 2, 5 - ended / 2 * 2));
            writer.finish().expect("finish");
            for shard in shards {
                let read = |folder: &Path| std::fs::read(folder.join(shard)).expect("shard");
                assert!(read(folder.path()) == read(whole.path()), "{shard} of {ended}");
            }
        }
        let store = Store::open(whole.path(), recipe("a")).expect("store");
        assert_eq!(store.len(), 5);
        (0..5).for_each(|number| assert_eq!(store.get(&prompt(number)).expect("get"), Some(values(number))));
        assert_eq!(store.get(&prompt(5)).expect("get"), None);
        assert_eq!(size_of_val(&store.get(&prompt(0)).expect("get").expect("entry")[..]), 32);
    }

    #[test]
    fn shards_of_something_else_and_damaged_ones_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        fill(folder.path(), 4).finish().expect("finish");
        let shard = folder.path().join("text-000001.safetensors");
        let sound = std::fs::read(&shard).expect("read");
        let open = |recipe: Recipe| Store::open(folder.path(), recipe).map(|_| ()).map_err(|e| e.to_string());
        let refused = |recipe: Recipe, bytes: &[u8], part: &str| {
            std::fs::write(&shard, bytes).expect("write");
            let said = open(recipe).expect_err(part);
            assert!(said.contains("text-00000") && said.contains(part), "{said}");
        };
        refused(recipe("b"), &sound, "encoder: a in the cache, b now");
        refused(Recipe { tensors: vec![("context", vec![3, 3])], ..recipe("a") }, &sound, "checksums of 2 entries");
        let wide = vec![("context", vec![2, 3]), ("pooled", vec![2])];
        refused(Recipe { tensors: wide, ..recipe("a") }, &sound, "context is F32 of [3, 2], expected F32 of [2, 3]");
        refused(recipe("a"), &sound[..sound.len() - 1], "cut short or damaged");
        refused(recipe("a"), &sound[..5], "shorter than 8 bytes");
        refused(recipe("a"), &[0xff; 64], "header of");
        let edited = |from: &str, to: &str| {
            let header = String::from_utf8_lossy(&sound[8..sound.len() - 72]).into_owned();
            assert!(header.contains(from) && from.len() == to.len(), "{header}");
            [&sound[..8], header.replace(from, to).as_bytes(), &sound[sound.len() - 72..]].concat()
        };
        refused(recipe("a"), &edited("\"version\":\"1\"", "\"version\":\"7\""), "version 7 of the cache, expected 1");
        refused(recipe("a"), &edited("seg4diff cache", "another format"), "not a shard of a cache");
        refused(recipe("a"), &edited("pooled", "pooler"), "pooled is missing");
        refused(recipe("a"), &edited("checksums", "chocksums"), "checksums is missing");
        let key = Store::open(folder.path(), recipe("a"));
        assert!(key.is_err());

        // A changed value fails its checksum when it is read.
        let mut changed = sound.clone();
        let place = sound.len() - 72 + 5;
        changed[place] ^= 1;
        std::fs::write(&shard, changed).expect("write");
        let store = Store::open(folder.path(), recipe("a")).expect("store");
        let damaged: Vec<String> =
            (0..4).filter_map(|number| store.get(&prompt(number)).err()).map(|e| e.to_string()).collect();
        assert_eq!(damaged.len(), 1, "{damaged:?}");
        assert!(damaged[0].contains("text-000001.safetensors: damaged") && damaged[0].contains("checksum"));
        assert!(open(recipe("a")).is_ok());
    }
}
