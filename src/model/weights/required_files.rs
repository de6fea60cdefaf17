//! Which files a diffusers folder must hold for a run, and which of them are missing.
use super::layout::class_in;
use super::located::{WeightNames, locate};
use super::part::Part;
use crate::config::{ModelConfig, TextEncoderKind};
use crate::model::families::known::{PIPELINES, pipeline_of_class};
use crate::model::families::pipelines::{EncoderFolders, PipelineNames};
use crate::system::error::{Error, Result};
use crate::system::limits::MODEL_JSON;
use crate::system::paths::{is_file, is_folder};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The files of a model folder that a run with these text encoders reads.
#[derive(Clone, Debug, Default)]
pub struct RequiredFiles {
    /// Those that are there, in the same order wherever the folder lies: what a fingerprint is taken of.
    pub present: Vec<PathBuf>,
    /// Those that are not. Where one of several would do, the usual one.
    pub missing: Vec<PathBuf>,
}

impl RequiredFiles {
    /// Looks through the diffusers folder of `model`.
    ///
    /// # Errors
    /// An index of shards that cannot be read, or a file of which the system does not say whether it is there.
    pub fn find(folder: &Path, model: &ModelConfig) -> Result<Self> {
        let mut files = Self::default();
        files.need(folder.join("model_index.json"))?;
        files.need(folder.join("scheduler/scheduler_config.json"))?;
        for (part, name) in [(Part::Transformer, "transformer"), (Part::Vae, "vae")] {
            files.need_part(&folder.join(name), part, model)?;
        }
        for EncoderFolders { kind, encoder, tokenizer } in pipeline_of(folder).encoders {
            if !model.text_encoders.contains(kind) {
                continue;
            }
            files.need_part(&folder.join(encoder), Part::Text(*kind), model)?;
            let whole = folder.join(tokenizer).join("tokenizer.json");
            if is_file(&whole)? || *kind == TextEncoderKind::T5 {
                files.need(whole)?;
            } else {
                files.need(folder.join(tokenizer).join("vocab.json"))?;
                files.need(folder.join(tokenizer).join("merges.txt"))?;
            }
            for name in ["added_tokens.json", "chat_template.jinja"] {
                let extra = folder.join(tokenizer).join(name);
                if is_file(&extra)? {
                    files.present.push(extra);
                }
            }
        }
        Ok(files)
    }

    fn need(&mut self, file: PathBuf) -> Result<()> {
        if is_file(&file)? {
            self.present.push(file)
        } else {
            self.missing.push(file)
        }
        Ok(())
    }

    /// Configuration and weights in a part's folder, or the file or folder of the part that lies elsewhere.
    fn need_part(&mut self, folder: &Path, part: Part, model: &ModelConfig) -> Result<()> {
        if let Some(path) = model.files.of(part) {
            return if is_folder(path)? { self.need_weights(path, part.stem(), None) } else { self.need(path.into()) };
        }
        self.need(folder.join("config.json"))?;
        self.need_weights(folder, part.stem(), model.variant.as_deref())
    }

    /// One file of weights, or the shards that an index lists.
    fn need_weights(&mut self, folder: &Path, stem: &str, variant: Option<&str>) -> Result<()> {
        match locate(folder, stem, variant)? {
            Some(located) => located.files.into_iter().try_for_each(|file| self.need(file)),
            None => self.need(folder.join(WeightNames::of(stem, variant).single)),
        }
    }
}

/// The pipeline of a diffusers folder; the first there is, where the folder does not say.
pub fn pipeline_of(folder: &Path) -> &'static PipelineNames {
    class_in(folder).and_then(|class| pipeline_of_class(&class)).unwrap_or(PIPELINES[0])
}

/// The text encoders that the `model_index.json` of a diffusers folder lists, of those that its pipeline usually uses.
///
/// # Errors
/// The file cannot be read.
pub fn text_encoders_in(folder: &Path) -> Result<Vec<TextEncoderKind>> {
    let index = json(&folder.join("model_index.json"))?;
    // ["transformers", "CLIPTextModelWithProjection"], or [null, null] for a part that is left out.
    let pipeline = pipeline_of(folder);
    let class = |kind: &TextEncoderKind| index.get(pipeline.folders(*kind)?.encoder)?.get(1)?.as_str();
    Ok(pipeline.usual_encoders.iter().copied().filter(|kind| class(kind).is_some()).collect())
}

pub(super) fn json(file: &Path) -> Result<Value> {
    let bytes = MODEL_JSON.read(file).map_err(|e| Error::file(file, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(file, format!("not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_encoders_are_those_of_the_index() {
        let folder = tempfile::tempdir().expect("folder");
        let found = |index: &str| {
            std::fs::write(folder.path().join("model_index.json"), index).expect("write");
            text_encoders_in(folder.path()).map_err(|e| e.to_string())
        };
        let clip = r#"["transformers", "CLIPTextModelWithProjection"]"#;
        let t5 = r#"["transformers", "T5EncoderModel"]"#;
        let whole = format!(r#"{{"text_encoder": {clip}, "text_encoder_2": {clip}, "text_encoder_3": {t5}}}"#);
        assert_eq!(found(&whole), Ok(vec![TextEncoderKind::ClipL, TextEncoderKind::ClipG]));
        let one = format!(r#"{{"text_encoder": [null, null], "text_encoder_2": {clip}}}"#);
        assert_eq!(found(&one), Ok(vec![TextEncoderKind::ClipG]));
        assert!(found("[").is_err_and(|text| text.contains("model_index.json: not JSON")));
    }
}
