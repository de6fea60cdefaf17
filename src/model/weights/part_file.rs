//! A network in a file of its own, or among others in a model's one file.
use super::located::require;
use super::naming::{Naming, SAME_NAMES};
use super::part::Part;
use super::shapes::Shapes;
use super::{Weights, one_file};
use crate::config::TextEncoderKind;
use crate::model::families::known::PIPELINES;
use crate::model::families::original::Original;
use crate::model::families::pipelines::PipelineNames;
use crate::model::text::original as text;
use crate::model::vae::original as vae;
use crate::system::error::{Error, Result};
use crate::system::paths::is_folder;
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};

/// What the names of a transformer's tensors may begin with; without any of them, they are alone in the file, or beside
/// others that have theirs.
const TRANSFORMER: &str = "model.diffusion_model.";
const VAE: [&str; 2] = ["first_stage_model.", "vae."];
const TEXT: &str = "text_encoders.";

/// A network in files.
pub(super) struct PartFile {
    /// What errors name.
    pub path: PathBuf,
    /// All files that hold it.
    pub files: Vec<PathBuf>,
    /// Its tensors by diffusers' names.
    tensors: Weights,
    /// Their shapes.
    pub shapes: Shapes,
}

/// How a network is found in a file, and named there.
struct Network {
    /// What its tensors' names may begin with among other networks'.
    prefixes: Vec<&'static str>,
    /// Sets of tensors, of which it has one.
    marks: Vec<Vec<&'static str>>,
    naming: &'static Naming,
}

impl Network {
    fn of(part: Part, original: Option<&'static Original>) -> Self {
        match part {
            Part::Transformer => Self {
                prefixes: vec![TRANSFORMER],
                marks: original.map_or(vec![], |original| original.marks.map(<[_]>::to_vec).to_vec()),
                naming: original.map_or(&SAME_NAMES, |original| &original.naming),
            },
            Part::Vae => Self { prefixes: VAE.to_vec(), marks: vec![vec![vae::MARK]], naming: &vae::NAMING },
            Part::Text(kind) => {
                let encoder = text::of(kind);
                let marks = encoder.marks.iter().map(|mark| vec![*mark]).collect();
                Self { prefixes: vec![encoder.prefix], marks, naming: encoder.naming }
            }
        }
    }

    /// What its tensors' names begin with in a file that holds it.
    fn prefix(&self, weights: &Weights, may_stand_alone: bool) -> Option<&'static str> {
        let alone = may_stand_alone.then_some("");
        self.prefixes.iter().copied().chain(alone).find(|prefix| {
            let has = |mark: &&str| weights.contains(&format!("{prefix}{mark}"));
            self.marks.iter().any(|marks| marks.iter().all(has))
        })
    }
}

/// The pipeline of the family whose transformer is in the file.
///
/// # Errors
/// There is none in it: says what is.
pub(super) fn pipeline_of(weights: &Weights) -> Result<&'static PipelineNames> {
    let is_of =
        |pipeline: &&PipelineNames| Network::of(Part::Transformer, pipeline.original).prefix(weights, true).is_some();
    PIPELINES.into_iter().find(is_of).ok_or_else(|| {
        let known = PIPELINES.map(|pipeline| pipeline.class.trim_end_matches("Pipeline")).join(", ");
        let problem = format!("no transformer of a known family ({known}): {}", one_file::what_is(weights));
        Error::file(weights.path(), problem)
    })
}

impl PartFile {
    /// Opens a file that holds the network, or a folder of such in diffusers' layout.
    ///
    /// # Errors
    /// It cannot be read, or does not hold the network.
    pub fn open(path: &Path, part: Part, original: Option<&'static Original>, variant: Option<&str>) -> Result<Self> {
        let (named, files) = match is_folder(path)? {
            true => {
                let located = require(path, part.stem(), variant)?;
                (located.index.or_else(|| located.files.first().cloned()).unwrap_or_default(), located.files)
            }
            false => {
                one_file::check_kind(path)?;
                (path.to_path_buf(), vec![path.to_path_buf()])
            }
        };
        let weights = Weights::open(&named, &files, DType::F32, &Device::Cpu)?;
        Self::find(&weights, files, part, original, true)?.ok_or_else(|| {
            let (title, key, found) = (part.title(), part.key(), one_file::what_is(&weights));
            Error::file(&named, format!("no {title} for model.files.{key}: {found}"))
        })
    }

    /// The network among the tensors of `files`, if it is there; `may_stand_alone` where names need not say that they are of
    /// this network.
    ///
    /// # Errors
    /// A tensor of it is not as the names say.
    pub fn find(
        weights: &Weights,
        files: Vec<PathBuf>,
        part: Part,
        original: Option<&'static Original>,
        may_stand_alone: bool,
    ) -> Result<Option<Self>> {
        let network = Network::of(part, original);
        let Some(prefix) = network.prefix(weights, may_stand_alone) else { return Ok(None) };
        // What stands alone may have others beside it that do not.
        let others: &[&str] = if prefix.is_empty() { &[TRANSFORMER, TEXT, VAE[0], VAE[1]] } else { &[] };
        let mut tensors = weights.part((prefix, others), network.naming, DType::F32, &Device::Cpu)?;
        if part == Part::Text(TextEncoderKind::ClipL) {
            // Its state is not projected: Stable Diffusion 3 was trained on it as it is. diffusers and ComfyUI do so, too.
            let hidden = (text::of(TextEncoderKind::ClipL).sizes)(&tensors.shapes())["hidden_size"].as_u64();
            tensors.set_identity("text_projection.weight", hidden.unwrap_or_default() as usize);
        }
        let path = weights.path().to_path_buf();
        Ok(Some(Self { path, files, shapes: tensors.shapes(), tensors }))
    }

    /// Its tensors, which come out as `dtype` on `device`.
    pub fn weights(&self, dtype: DType, device: &Device) -> Weights {
        self.tensors.on(dtype, device)
    }
}
