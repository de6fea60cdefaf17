//! A family's sizes, as its files have them.
use super::transformer::TransformerConfig;
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::Result;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Sizes of a family's denoiser; the fields are the keys of `transformer/config.json`.
pub trait FamilyConfig: DeserializeOwned {
    /// Refuses sizes that do not make a model, naming the `file` that they came from.
    ///
    /// # Errors
    /// Such sizes.
    fn checked(self, file: &Path) -> Result<Self>;

    /// The sizes as all families have them.
    fn general(&self) -> TransformerConfig;

    /// Features of a token.
    fn width(&self) -> usize {
        self.general().width()
    }

    /// Reads and checks a model's configuration.
    ///
    /// # Errors
    /// A key is missing, or what is there does not make a model.
    fn open(files: &ModelFiles) -> Result<Self> {
        files.config::<Self>(Part::Transformer)?.checked(&files.config_path(Part::Transformer))
    }
}

/// Refuses a size that is 0 or larger than any denoiser's, so that products of two stay whole numbers.
pub(super) fn check_sizes(file: &Path, named: &[(&str, usize)]) -> Result<()> {
    sizes::check_up_to(1 << 16, file, named)
}
