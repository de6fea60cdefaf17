//! A folder in the diffusers layout; of a repository on the hub, files are fetched into its cache when they are first asked
//! for.
use super::hub::{Hub, is_offline};
use super::located::{Located, WeightNames, require};
use super::shard_index::ShardIndex;
use crate::system::error::{Error, Result};
use crate::system::limits::MODEL_JSON;
use crate::system::paths::{is_file, is_folder};
use std::path::PathBuf;

/// The folder.
pub(super) struct ModelFolder {
    /// Where it is; of a hub repository, its snapshot in the cache.
    pub path: PathBuf,
    hub: Option<Hub>,
}

impl ModelFolder {
    /// Finds a folder, or `hf:org/name` or `hf:org/name@revision`.
    ///
    /// # Errors
    /// There is no such.
    pub fn open(path_or_hub: &str) -> Result<Self> {
        if let Some(name) = path_or_hub.strip_prefix("hf:") {
            let (hub, path) = Hub::open(name)?;
            return Ok(Self { path, hub: Some(hub) });
        }
        let path = PathBuf::from(path_or_hub);
        if is_file(&path)? {
            return Err(Error::file(&path, "not a folder: expected one in the diffusers layout"));
        }
        if !is_folder(&path)? {
            return Err(Error::file(&path, "no such folder (a model of the hub is written hf:org/name)"));
        }
        Ok(Self { path, hub: None })
    }

    /// Finds the weights called `stem` in the subfolder `part`, of a variant where there are such.
    ///
    /// # Errors
    /// There are none, or a file of them is missing.
    pub fn located(&self, part: &str, stem: &str, variant: Option<&str>) -> Result<Located> {
        if self.hub.is_some() && !(variant.is_some() && self.fetch_weights(part, stem, variant)?) {
            self.fetch_weights(part, stem, None)?;
        }
        let located = require(&self.path.join(part), stem, variant)?;
        for file in &located.files {
            if !is_file(file)? {
                return Err(Error::file(file, "no such file"));
            }
        }
        Ok(located)
    }

    /// Fetches a part's weights, plain or of a variant; whether there are any.
    fn fetch_weights(&self, folder: &str, stem: &str, variant: Option<&str>) -> Result<bool> {
        let WeightNames { single, indexes } = WeightNames::of(stem, variant);
        let indexes: Vec<String> = indexes.into_iter().map(|index| format!("{folder}/{index}")).collect();
        // With shards in the cache, asking for the single file would need the network.
        let mut has_index = false;
        for index in &indexes {
            has_index |= is_file(&self.path.join(index))?;
        }
        if !has_index && self.optional(&format!("{folder}/{single}"))?.is_some() {
            return Ok(true);
        }
        for index in &indexes {
            if let Some(index) = self.optional(index)? {
                for shard in ShardIndex::read(&index)?.shards() {
                    self.required(&format!("{folder}/{shard}"))?;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The subfolder `name` of a tokenizer, with the files in it that there are; a chat template among them where it has one.
    ///
    /// # Errors
    /// There is none.
    pub fn tokenizer(&self, name: &str, has_template: bool) -> Result<PathBuf> {
        let folder = self.path.join(name);
        let at_hand = |file: &str| is_file(&folder.join(file));
        let complete = at_hand("tokenizer.json")? || at_hand("vocab.json")? && at_hand("merges.txt")?;
        if !complete && self.hub.is_some() {
            match self.optional(&format!("{name}/vocab.json"))? {
                Some(_) => self.required(&format!("{name}/merges.txt"))?,
                None => self.required(&format!("{name}/tokenizer.json"))?,
            };
        }
        let config = self.optional(&format!("{name}/tokenizer_config.json"))?;
        let config = config.and_then(|file| MODEL_JSON.read_text(&file).ok()).unwrap_or_default();
        // What the configuration does not say may be in a file of its own.
        for (key, file) in [
            ("pad_token", "special_tokens_map.json"),
            ("added_tokens_decoder", "added_tokens.json"),
            ("chat_template", "chat_template.jinja"),
        ] {
            if (has_template || key != "chat_template") && !config.contains(&format!("\"{key}\"")) {
                self.optional_extra(&format!("{name}/{file}"))?;
            }
        }
        if !is_folder(&folder)? {
            return Err(Error::file(folder, "no such folder: the pipeline lacks this tokenizer"));
        }
        Ok(folder)
    }

    /// The file at this path within the folder.
    ///
    /// # Errors
    /// There is none.
    pub fn required(&self, file: &str) -> Result<PathBuf> {
        self.optional(file)?.ok_or_else(|| Error::file(self.path.join(file), "no such file"))
    }

    /// The file at this path within the folder, or `None` if there is none.
    pub fn optional(&self, file: &str) -> Result<Option<PathBuf>> {
        let path = self.path.join(file);
        if is_file(&path)? {
            return Ok(Some(path));
        }
        self.hub.as_ref().map_or(Ok(None), |hub| hub.fetch(file))
    }

    /// [`Self::optional`], of a file that few models have: without network, one that the cache lacks is taken for absent.
    fn optional_extra(&self, file: &str) -> Result<Option<PathBuf>> {
        if is_offline() && !is_file(&self.path.join(file))? { Ok(None) } else { self.optional(file) }
    }
}
