//! Which folder a model's configurations and tokenizers are in.
use super::folder::ModelFolder;
use crate::system::error::Result;
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use crate::system::paths::may_be_file;
use serde_json::Value;
use std::path::Path;
use std::sync::OnceLock;

/// A folder in the diffusers layout, or a repository of such, opened when it is needed: the model's, or one that has the
/// tokenizers of a model in one file.
pub(super) struct Layout {
    /// As the user names it.
    pub name: String,
    folder: OnceLock<ModelFolder>,
}

impl Layout {
    /// One that is opened when it is asked for.
    pub fn of(name: String) -> Self {
        Self { name, folder: OnceLock::new() }
    }

    /// One that is open.
    pub fn opened(name: &str, folder: ModelFolder) -> Self {
        Self { name: name.to_owned(), folder: OnceLock::from(folder) }
    }

    /// # Errors
    /// There is no such folder, or the repository cannot be asked for it.
    pub fn folder(&self) -> Result<&ModelFolder> {
        match self.folder.get() {
            Some(folder) => Ok(folder),
            None => {
                let folder = ModelFolder::open(&self.name)?;
                Ok(self.folder.get_or_init(|| folder))
            }
        }
    }

    /// Its path where it is no repository.
    pub fn local(&self) -> Option<&Path> {
        (!self.name.starts_with("hf:")).then(|| Path::new(&self.name))
    }
}

/// `_class_name` in the `model_index.json` of a folder, if it has one.
pub(super) fn class_in(folder: &Path) -> Option<String> {
    let index = folder.join("model_index.json");
    let index: Value = may_be_file(&index).then(|| read_json(&index, MODEL_JSON).ok())??;
    Some(index.get("_class_name")?.as_str()?.to_owned())
}
