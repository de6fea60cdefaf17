//! The files of a base model: a diffusers folder, a repository of the Hugging Face hub in its usual cache, or one file with
//! the original names; parts of it may lie elsewhere.
use super::folder::ModelFolder;
use super::layout::{Layout, class_in};
use super::located::Located;
pub use super::part::Part;
use super::part_file::{self, PartFile};
use super::required_files::{RequiredFiles, text_encoders_in};
use super::{hub, one_file, part_config};
use crate::config::{ModelConfig, PartPaths, Quantization, TextEncoderKind};
use crate::model::families::known;
use crate::model::families::original::Original;
use crate::model::families::pipelines::{EncoderFolders, PipelineNames, TextForm};
use crate::model::text::original as text;
use crate::model::weights::Weights;
use crate::system::error::{Error, Result};
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use crate::system::paths::{is_file, may_be_file};
use candle_core::{DType, Device};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Files that a tokenizer may be made of.
const TOKENIZER_FILES: [&str; 7] = [
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// Where a base model's tensors, configurations and tokenizers are; files of a hub repository are fetched into its cache when
/// they are first asked for.
pub struct ModelFiles {
    /// The model's folder or file.
    path: PathBuf,
    layout: Layout,
    /// Whether the model is a file, which has no configurations.
    is_one_file: bool,
    /// Networks that are in the model's one file, or in files of their own.
    parts: HashMap<Part, PartFile>,
    /// What is known of its pipeline; none where no family has such.
    pipeline: Option<&'static PipelineNames>,
    /// Which variant of the weights is taken, of parts that have it.
    variant: Option<String>,
    /// How the frozen weights of blocks and text encoders are kept; none for dense.
    quantize: Option<Quantization>,
}

impl ModelFiles {
    /// Opens a diffusers folder, `hf:org/name` or `hf:org/name@revision` (a branch, tag or commit), or a model in one file,
    /// on the hub `hf:org/name/file`.
    ///
    /// Fails unless the folder holds `model_index.json`. Of a hub repository, what the cache holds is used without network; a
    /// download that is refused or offline fails with repository and reason.
    pub fn open(path_or_hub: &str) -> Result<Self> {
        Self::open_with(path_or_hub, None, &PartPaths::default())
    }

    /// [`Self::open`], with this variant of the weights, of parts that have it, and with parts that lie elsewhere.
    ///
    /// # Errors
    /// Those of [`Self::open`]; a part is not where it should be.
    pub fn open_with(path_or_hub: &str, variant: Option<&str>, named: &PartPaths) -> Result<Self> {
        let files = if let Some(file) = hub::fetched(path_or_hub)? {
            Self::of_file(&file, None, named)?
        } else if !path_or_hub.starts_with("hf:") && is_file(Path::new(path_or_hub))? {
            Self::of_file(Path::new(path_or_hub), Path::new(path_or_hub).parent(), named)?
        } else {
            Self::of_folder(path_or_hub)?
        };
        Self { variant: variant.map(str::to_owned), ..files }.with_parts(named)
    }

    /// Opens the model of a run.
    ///
    /// # Errors
    /// Those of [`Self::open_with`].
    pub fn of(config: &ModelConfig) -> Result<Self> {
        Ok(Self::open_with(&config.path, config.variant.as_deref(), &config.files)?.quantized(config.quantize))
    }

    /// With the frozen weights of blocks and text encoders quantised; the autoencoder's never are.
    pub fn quantized(self, quantize: Option<Quantization>) -> Self {
        Self { quantize, ..self }
    }

    fn of_folder(path_or_hub: &str) -> Result<Self> {
        let folder = ModelFolder::open(path_or_hub)?;
        let path = folder.path.clone();
        let layout = Layout::opened(path_or_hub, folder);
        let files = Self {
            path,
            layout,
            is_one_file: false,
            parts: HashMap::new(),
            pipeline: None,
            variant: None,
            quantize: None,
        };
        let pipeline = known::pipeline_of_class(&files.pipeline_class()?);
        Ok(Self { pipeline, ..files })
    }

    /// Opens a model in one file; `beside` is a folder that may have its tokenizers.
    fn of_file(file: &Path, beside: Option<&Path>, named: &PartPaths) -> Result<Self> {
        one_file::check_kind(file)?;
        let weights = Weights::open(file, &[file.to_path_buf()], DType::F32, &Device::Cpu)?;
        let pipeline = part_file::pipeline_of(&weights)?;
        let mut parts = HashMap::new();
        for part in parts_with(pipeline.encoders.iter().map(|folders| folders.kind)) {
            let may_stand_alone = part == Part::Transformer;
            let found = PartFile::find(&weights, vec![file.to_path_buf()], part, pipeline.original, may_stand_alone)?;
            parts.extend(found.map(|found| (part, found)));
        }
        let beside = beside.filter(|folder| class_in(folder).is_some_and(|class| pipeline.is_class_of(&class)));
        let usual = || format!("hf:{}", pipeline.original.map_or("", |original| original.repository));
        let name = named.config.clone().or_else(|| Some(beside?.to_str()?.to_owned())).unwrap_or_else(usual);
        let layout = Layout::of(name);
        if let Some(class) = layout.local().and_then(class_in).filter(|class| !pipeline.is_class_of(class)) {
            let problem = format!("model.files.config: it is of {class}, but {} of {}", file.display(), pipeline.class);
            return Err(Error::file(&layout.name, problem));
        }
        Ok(Self {
            path: file.to_path_buf(),
            layout,
            is_one_file: true,
            parts,
            pipeline: Some(pipeline),
            variant: None,
            quantize: None,
        })
    }

    /// Puts the files in `named` in the place of what the model has.
    fn with_parts(mut self, named: &PartPaths) -> Result<Self> {
        let Some(pipeline) = self.pipeline else { return Ok(self) };
        for (part, path) in named.parts() {
            if let Part::Text(kind) = part
                && pipeline.folders(kind).is_none()
            {
                let (key, class) = (part.key(), pipeline.class);
                return Err(Error::Usage(format!("model.files.{key}: {class} has no such text encoder")));
            }
            let found = PartFile::open(&hub::local(path)?, part, pipeline.original, self.variant.as_deref())?;
            self.parts.insert(part, found);
        }
        Ok(self)
    }

    /// What is known of its pipeline.
    ///
    /// # Errors
    /// No family has such a pipeline.
    pub fn known_pipeline(&self) -> Result<&'static PipelineNames> {
        if let Some(pipeline) = self.pipeline {
            return Ok(pipeline);
        }
        let known = known::PIPELINES.map(|names| format!("{:?}", names.class)).join(" or ");
        let problem = format!("_class_name is {:?}, expected {known}", self.pipeline_class()?);
        Err(Error::file(self.path.join("model_index.json"), problem))
    }

    /// Name of a part's folder in the diffusers layout; that of a text encoder which the pipeline lacks is made up, and
    /// not there.
    fn part_folder(&self, part: Part) -> &'static str {
        self.text_folders(part).map_or(part.key(), |folders| folders.encoder)
    }

    /// Names of the folders of a text encoder.
    fn text_folders(&self, part: Part) -> Option<&'static EncoderFolders> {
        if let Part::Text(kind) = part { self.pipeline?.folders(kind) } else { None }
    }

    /// `_class_name` in `model_index.json`, such as `StableDiffusion3Pipeline`; that of its family, of a model in one file.
    pub fn pipeline_class(&self) -> Result<String> {
        if let (true, Some(pipeline)) = (self.is_one_file, self.pipeline) {
            return Ok(pipeline.class.to_owned());
        }
        #[derive(serde::Deserialize)]
        struct ModelIndex {
            _class_name: String,
        }
        Ok(self.pipeline_config::<ModelIndex>()?._class_name)
    }

    /// Reads `model_index.json`, which has the pipeline's settings beside its parts; a model in one file has none.
    pub fn pipeline_config<C: DeserializeOwned>(&self) -> Result<C> {
        read_json(&self.layout.folder()?.required("model_index.json")?, MODEL_JSON)
    }

    /// The model's file, or the folder that holds `model_index.json`; of a hub repository, its snapshot in the cache.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What diffusers' `from_pretrained` takes, of the model that settings name `path`: of one file, the released model's
    /// repository.
    pub fn diffusers_name(&self, path: &str) -> String {
        let original = self.original().filter(|_| self.is_one_file);
        original.map_or(path, |original| original.repository).to_owned()
    }

    fn original(&self) -> Option<&'static Original> {
        self.pipeline?.original
    }

    /// Whether the model is a file, which has no settings of its pipeline.
    pub fn is_one_file(&self) -> bool {
        self.is_one_file
    }

    /// Whether the model is a file, or has a part in a file of its own.
    pub fn has_files(&self) -> bool {
        !self.parts.is_empty()
    }

    /// The text encoders that the model has, of those that its pipeline usually uses.
    ///
    /// # Errors
    /// The folder's `model_index.json` cannot be read.
    pub fn text_encoders(&self) -> Result<Vec<TextEncoderKind>> {
        let in_folder = if self.is_one_file { vec![] } else { text_encoders_in(&self.path)? };
        let usual = self.pipeline.map_or(&[][..], |pipeline| pipeline.usual_encoders);
        let is_there = |kind: &TextEncoderKind| in_folder.contains(kind) || self.parts.contains_key(&Part::Text(*kind));
        Ok(usual.iter().copied().filter(is_there).collect())
    }

    /// Reads a part's `config.json`, or finds what it would say; a missing or wrong key is an error that names it and the
    /// file.
    pub fn config<C: DeserializeOwned>(&self, part: Part) -> Result<C> {
        match self.config_of_file(part)? {
            Some(config) => serde_json::from_value(config).map_err(|e| Error::file(self.config_path(part), e)),
            None => {
                let file = format!("{}/config.json", self.part_folder(part));
                read_json(&self.layout.folder()?.required(&file)?, MODEL_JSON)
            }
        }
    }

    /// What the `config.json` would say of a part that has none beside it; none where it has.
    fn config_of_file(&self, part: Part) -> Result<Option<Value>> {
        let found = self.parts.get(&part);
        if found.is_none() && !self.is_one_file {
            return Ok(None);
        }
        let original = self.known_pipeline()?.original;
        part_config::of(part, original, self.config_file(part).as_deref(), found.map(|found| &found.shapes)).map(Some)
    }

    /// The `config.json` of a part in a folder of configurations.
    fn config_file(&self, part: Part) -> Option<PathBuf> {
        let file = self.layout.local()?.join(self.part_folder(part)).join("config.json");
        may_be_file(&file).then_some(file)
    }

    /// Path of a part's `config.json`, for errors about what it says; that of its file where it has none.
    pub fn config_path(&self, part: Part) -> PathBuf {
        match self.parts.get(&part) {
            Some(found) => found.path.clone(),
            None if self.is_one_file => self.path.clone(),
            None => self.path.join(self.part_folder(part)).join("config.json"),
        }
    }

    /// Opens a part's weights, which come out as `dtype` on `device`.
    pub fn weights(&self, part: Part, dtype: DType, device: &Device) -> Result<Weights> {
        let quantize = self.quantize.filter(|_| part != Part::Vae);
        let weights = match self.parts.get(&part) {
            Some(found) => found.weights(dtype, device),
            None => Weights::open_located(&self.located(part)?, dtype, device)?,
        };
        Ok(weights.quantized(quantize))
    }

    /// The files that hold a part's weights: one file, or the index and its shards in name order.
    pub fn weight_files(&self, part: Part) -> Result<Vec<PathBuf>> {
        if let Some(found) = self.parts.get(&part) {
            return Ok(found.files.clone());
        }
        let Located { index, files } = self.located(part)?;
        Ok(index.into_iter().chain(files).collect())
    }

    fn located(&self, part: Part) -> Result<Located> {
        if self.is_one_file {
            return Err(Error::file(&self.path, self.lacks(part)));
        }
        self.layout.folder()?.located(self.part_folder(part), part.stem(), self.variant.as_deref())
    }

    /// What to say of a part that the model's file lacks.
    fn lacks(&self, part: Part) -> String {
        let file = match part {
            Part::Transformer => "",
            Part::Vae => self.original().map_or("", |original| original.vae_file),
            Part::Text(kind) => text::of(kind).file,
        };
        let (what, key) = (part.title(), part.key());
        format!("no {what} {key} in it: name its file, usually {file}, as model.files.{key} (--model-file {key}=FILE)")
    }

    /// The folder of a text encoder's tokenizer, with the files in it that there are.
    pub fn tokenizer(&self, part: Part) -> Result<PathBuf> {
        let Some(EncoderFolders { tokenizer: name, .. }) = self.text_folders(part) else {
            return Err(Error::Failed(format!("{} has no tokenizer", self.part_folder(part))));
        };
        let has_template = self.pipeline.is_some_and(|pipeline| matches!(pipeline.text, TextForm::Qwen3 { .. }));
        let found = self.layout.folder().and_then(|folder| folder.tokenizer(name, has_template));
        found.map_err(|problem| match self.is_one_file {
            false => problem,
            true => Error::file(
                &self.path,
                format!(
                    "no tokenizers in it, and none elsewhere ({problem}): name a folder or repository in the diffusers \
                     layout that has {name}/ as model.files.config (--model-file config=DIR)"
                ),
            ),
        })
    }

    /// All files that make a part what it is: its configuration, its weights, and those of its tokenizer if it has one.
    pub fn part_files(&self, part: Part) -> Result<Vec<PathBuf>> {
        let mut files = match self.parts.contains_key(&part) {
            true => self.config_file(part).into_iter().collect(),
            false if self.is_one_file => return Err(Error::file(&self.path, self.lacks(part))),
            false => vec![self.layout.folder()?.required(&format!("{}/config.json", self.part_folder(part)))?],
        };
        files.extend(self.weight_files(part)?);
        if self.text_folders(part).is_some() {
            let folder = self.tokenizer(part)?;
            files.extend(TOKENIZER_FILES.iter().map(|name| folder.join(name)).filter(|file| may_be_file(file)));
        }
        Ok(files)
    }

    /// The files that the fingerprint of a run's base model is of; those of a hub repository are fetched.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn base_files(&self, model: &ModelConfig) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = vec![];
        for part in run_parts(model) {
            for file in self.part_files(part)? {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        if self.is_one_file {
            return Ok(files);
        }
        files.push(self.scheduler_path()?);
        match self.has_files() {
            true => Ok(files),
            false => Ok(RequiredFiles::find(&self.path, model)?.present),
        }
    }

    /// What a run with these settings lacks of the model's files, of those that do not lie on the hub.
    pub fn problems(&self, model: &ModelConfig) -> Vec<String> {
        let lacks = |part: &Part| self.is_one_file && !self.parts.contains_key(part);
        let name = self.path.display();
        let mut problems: Vec<String> =
            run_parts(model).filter(lacks).map(|part| format!("model.path: {name}: {}", self.lacks(part))).collect();
        if self.layout.local().is_some() {
            let tokenizers = model.text_encoders.iter().map(|kind| self.tokenizer(Part::Text(*kind)));
            problems.extend(tokenizers.filter_map(Result::err).map(|problem| format!("model.files.config: {problem}")));
        }
        problems
    }

    /// The scheduler's configuration: of a model in one file that of its family.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn scheduler_config<C: DeserializeOwned>(&self) -> Result<C> {
        match (self.is_one_file, self.known_pipeline()?.original, self.parts.get(&Part::Transformer)) {
            (true, Some(original), Some(transformer)) => {
                let config = (original.scheduler)(&transformer.shapes);
                serde_json::from_value(config).map_err(|e| Error::file(&self.path, e))
            }
            _ => read_json(&self.scheduler_path()?, MODEL_JSON),
        }
    }

    /// Path of the scheduler's configuration, for errors about what it says; that of the model in one file, which has none.
    ///
    /// # Errors
    /// There is none.
    pub fn scheduler_path(&self) -> Result<PathBuf> {
        match self.is_one_file {
            true => Ok(self.path.clone()),
            false => self.layout.folder()?.required("scheduler/scheduler_config.json"),
        }
    }
}

/// The parts of a model with these text encoders.
fn parts_with(encoders: impl Iterator<Item = TextEncoderKind>) -> impl Iterator<Item = Part> {
    [Part::Transformer, Part::Vae].into_iter().chain(encoders.map(Part::Text))
}

/// The parts that a run uses.
fn run_parts(model: &ModelConfig) -> impl Iterator<Item = Part> {
    parts_with(model.text_encoders.iter().copied())
}
