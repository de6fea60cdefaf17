//! The files of a base model: a diffusers folder, or a repository of the Hugging Face hub in its usual cache.
use super::located::{Located, WeightNames, require};
use super::shard_index::ShardIndex;
use crate::config::{Choice, ModelConfig, TextEncoderKind};
use crate::model::families::pipelines::{PIPELINES, PipelineNames};
use crate::model::weights::Weights;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use crate::system::paths::{is_file, is_folder, may_be_file};
use crate::system::process::refused;
use candle_core::{DType, Device};
use hf_hub::{HFClientSync, HFError, HFRepositorySync, RepoTypeModel};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files that a tokenizer may be made of.
const TOKENIZER_FILES: [&str; 6] = [
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// A network of the pipeline, each with a folder of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The denoiser, in `transformer/`.
    Transformer,
    /// The autoencoder, in `vae/`.
    Vae,
    /// A text encoder; its pipeline says where that lies.
    Text(TextEncoderKind),
}

impl Part {
    /// What its weights file is called: `STEM.safetensors` or `STEM.safetensors.index.json`.
    fn stem(self) -> &'static str {
        match self {
            Self::Transformer | Self::Vae => "diffusion_pytorch_model",
            Self::Text(_) => "model",
        }
    }
}

/// A base model's folder; files of a hub repository are fetched into its cache when they are first asked for.
pub struct ModelFiles {
    folder: PathBuf,
    hub: Option<Hub>,
    /// What is known of its pipeline; none where no family has such.
    pipeline: Option<&'static PipelineNames>,
    /// Which variant of the weights is taken, of parts that have it.
    variant: Option<String>,
}

impl ModelFiles {
    /// Opens a diffusers folder, or `hf:org/name` or `hf:org/name@revision` (a branch, tag or commit).
    ///
    /// Fails unless it holds `model_index.json`. Of a hub repository, what the cache holds is used without network; a download
    /// that is refused or offline fails with repository and reason.
    pub fn open(path_or_hub: &str) -> Result<Self> {
        let files = match path_or_hub.strip_prefix("hf:") {
            Some(name) => Hub::open(name)?,
            None => {
                let folder = PathBuf::from(path_or_hub);
                if is_file(&folder)? {
                    return Err(Error::file(&folder, "not a folder: a base model is a folder in the diffusers layout"));
                }
                if !is_folder(&folder)? {
                    return Err(Error::file(&folder, "no such folder (a model of the hub is written hf:org/name)"));
                }
                Self { folder, hub: None, pipeline: None, variant: None }
            }
        };
        let pipeline = PipelineNames::of_class(&files.pipeline_class()?);
        Ok(Self { pipeline, ..files })
    }

    /// [`Self::open`], with this variant of the weights, of parts that have it.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_variant(path_or_hub: &str, variant: Option<&str>) -> Result<Self> {
        Ok(Self { variant: variant.map(str::to_owned), ..Self::open(path_or_hub)? })
    }

    /// Opens the model of a run.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn of(config: &ModelConfig) -> Result<Self> {
        Self::open_variant(&config.path, config.variant.as_deref())
    }

    /// What is known of its pipeline.
    ///
    /// # Errors
    /// No family has such a pipeline.
    pub fn known_pipeline(&self) -> Result<&'static PipelineNames> {
        if let Some(pipeline) = self.pipeline {
            return Ok(pipeline);
        }
        let known = PIPELINES.map(|names| format!("{:?}", names.class)).join(" or ");
        let problem = format!("_class_name is {:?}, expected {known}", self.pipeline_class()?);
        Err(Error::file(self.folder.join("model_index.json"), problem))
    }

    /// Name of a part's folder in the diffusers layout; that of a text encoder which the pipeline lacks is made up, and
    /// not there.
    fn part_folder(&self, part: Part) -> &'static str {
        match part {
            Part::Transformer => "transformer",
            Part::Vae => "vae",
            Part::Text(kind) => {
                let folders = self.pipeline.and_then(|pipeline| pipeline.folders(kind));
                folders.map_or(kind.name(), |folders| folders.encoder)
            }
        }
    }

    /// Name of the folder of a text encoder's tokenizer.
    fn tokenizer_folder(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Transformer | Part::Vae => None,
            Part::Text(kind) => Some(self.pipeline?.folders(kind)?.tokenizer),
        }
    }

    /// `_class_name` in `model_index.json`, such as `StableDiffusion3Pipeline`.
    pub fn pipeline_class(&self) -> Result<String> {
        #[derive(serde::Deserialize)]
        struct ModelIndex {
            _class_name: String,
        }
        let index: ModelIndex = read_json(&self.required("model_index.json")?, MODEL_JSON)?;
        Ok(index._class_name)
    }

    /// The folder that holds `model_index.json`; of a hub repository, its snapshot in the cache.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads a part's `config.json`; a missing or wrong key is an error that names it and the file.
    pub fn config<C: DeserializeOwned>(&self, part: Part) -> Result<C> {
        read_json(&self.required(&format!("{}/config.json", self.part_folder(part)))?, MODEL_JSON)
    }

    /// Path of a part's `config.json`, for errors about what it says.
    pub fn config_path(&self, part: Part) -> PathBuf {
        self.folder.join(self.part_folder(part)).join("config.json")
    }

    /// Opens a part's weights, which come out as `dtype` on `device`.
    pub fn weights(&self, part: Part, dtype: DType, device: &Device) -> Result<Weights> {
        Weights::open_located(&self.located(part)?, dtype, device)
    }

    /// The files that hold a part's weights: one file, or the index and its shards in name order.
    pub fn weight_files(&self, part: Part) -> Result<Vec<PathBuf>> {
        let Located { index, files } = self.located(part)?;
        Ok(index.into_iter().chain(files).collect())
    }

    fn located(&self, part: Part) -> Result<Located> {
        let (folder, variant) = (self.folder.join(self.part_folder(part)), self.variant.as_deref());
        if self.hub.is_some() && !(variant.is_some() && self.fetch_weights(part, variant)?) {
            self.fetch_weights(part, None)?;
        }
        let located = require(&folder, part.stem(), variant)?;
        for file in &located.files {
            if !is_file(file)? {
                return Err(Error::file(file, "no such file"));
            }
        }
        Ok(located)
    }

    /// Fetches a part's weights, plain or of a variant; whether there are any.
    fn fetch_weights(&self, part: Part, variant: Option<&str>) -> Result<bool> {
        let folder = self.part_folder(part);
        let WeightNames { single, indexes } = WeightNames::of(part.stem(), variant);
        let indexes: Vec<String> = indexes.into_iter().map(|index| format!("{folder}/{index}")).collect();
        // With shards in the cache, asking for the single file would need the network.
        let mut has_index = false;
        for index in &indexes {
            has_index |= is_file(&self.folder.join(index))?;
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

    /// The folder of a text encoder's tokenizer, with the files in it that there are.
    pub fn tokenizer(&self, part: Part) -> Result<PathBuf> {
        let Some(name) = self.tokenizer_folder(part) else {
            return Err(Error::Failed(format!("{} has no tokenizer", self.part_folder(part))));
        };
        let folder = self.folder.join(name);
        let at_hand = |file: &str| is_file(&folder.join(file));
        let complete = at_hand("tokenizer.json")? || at_hand("vocab.json")? && at_hand("merges.txt")?;
        if !complete && self.hub.is_some() {
            match self.optional(&format!("{name}/vocab.json"))? {
                Some(_) => self.required(&format!("{name}/merges.txt"))?,
                None => self.required(&format!("{name}/tokenizer.json"))?,
            };
        }
        let config = self.optional(&format!("{name}/tokenizer_config.json"))?;
        let says = |file: &PathBuf, key: &str| {
            MODEL_JSON.read_text(file).is_ok_and(|text| text.contains(&format!("\"{key}\"")))
        };
        if !config.as_ref().is_some_and(|file| says(file, "pad_token")) {
            self.optional_extra(&format!("{name}/special_tokens_map.json"))?;
        }
        if !config.as_ref().is_some_and(|file| says(file, "added_tokens_decoder")) {
            self.optional_extra(&format!("{name}/added_tokens.json"))?;
        }
        if !is_folder(&folder)? {
            return Err(Error::file(folder, "no such folder: the pipeline lacks this tokenizer"));
        }
        Ok(folder)
    }

    /// All files that make a part what it is: its configuration, its weights, and those of its tokenizer if it has one.
    pub fn part_files(&self, part: Part) -> Result<Vec<PathBuf>> {
        let mut files = vec![self.required(&format!("{}/config.json", self.part_folder(part)))?];
        files.extend(self.weight_files(part)?);
        if self.tokenizer_folder(part).is_some() {
            let folder = self.tokenizer(part)?;
            files.extend(TOKENIZER_FILES.iter().map(|name| folder.join(name)).filter(|file| may_be_file(file)));
        }
        Ok(files)
    }

    /// Path of the scheduler's configuration.
    pub fn scheduler_config(&self) -> Result<PathBuf> {
        self.required("scheduler/scheduler_config.json")
    }

    fn required(&self, file: &str) -> Result<PathBuf> {
        self.optional(file)?.ok_or_else(|| Error::file(self.folder.join(file), "no such file"))
    }

    /// The file at this path within the model, or `None` if the model has none.
    fn optional(&self, file: &str) -> Result<Option<PathBuf>> {
        let path = self.folder.join(file);
        if is_file(&path)? {
            return Ok(Some(path));
        }
        self.hub.as_ref().map_or(Ok(None), |hub| hub.fetch(file))
    }

    /// [`Self::optional`], of a file that few models have: without network, one that the cache lacks is taken for absent.
    fn optional_extra(&self, file: &str) -> Result<Option<PathBuf>> {
        if is_offline() && !is_file(&self.folder.join(file))? { Ok(None) } else { self.optional(file) }
    }
}

/// Seconds that the hub may take to answer at all, where HF_HUB_ETAG_TIMEOUT does not say otherwise.
const ANSWER_SECONDS: u64 = 30;

/// A repository at one commit.
#[derive(Clone)]
struct Hub {
    repository: HFRepositorySync<RepoTypeModel>,
    /// As the user wrote it, for errors.
    name: String,
    revision: String,
}

impl Hub {
    fn open(name: &str) -> Result<ModelFiles> {
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        let (owner, repository) = match id.split_once('/') {
            Some((owner, name)) if !owner.is_empty() && !name.is_empty() && !name.contains('/') => (owner, name),
            _ => return Err(Error::Usage(format!("hf:{name}: expected hf:org/name or hf:org/name@revision"))),
        };
        if revision.is_empty() {
            return Err(Error::Usage(format!("hf:{name}: no revision after @")));
        }
        let client = HFClientSync::new().map_err(|e| Error::Failed(format!("hf:{name}: {}", reason(&e))))?;
        let mut hub = Hub {
            repository: client.model(owner, repository),
            name: format!("hf:{name}"),
            revision: revision.to_string(),
        };
        let index = hub.fetch_in_time("model_index.json")?.ok_or_else(|| {
            Error::Failed(format!("hf:{name}: no model_index.json in it, so not a diffusers pipeline"))
        })?;
        let folder = index.parent().map(Path::to_path_buf).unwrap_or_default();
        // From here on that very commit, even if the branch moves: the snapshot's folder is named by it.
        if let Some(commit) = folder.file_name().and_then(|name| name.to_str()) {
            hub.revision = commit.to_string();
        }
        Ok(ModelFiles { folder, hub: Some(hub), pipeline: None, variant: None })
    }

    /// Fetches a small file, and gives up on a hub that does not answer: the client itself would wait for ever.
    fn fetch_in_time(&self, file: &'static str) -> Result<Option<PathBuf>> {
        let seconds = std::env::var("HF_HUB_ETAG_TIMEOUT").ok().and_then(|text| text.parse().ok());
        let seconds = seconds.unwrap_or(ANSWER_SECONDS);
        let (sender, answer) = std::sync::mpsc::channel();
        let hub = self.clone();
        let thread = std::thread::Builder::new().spawn(move || sender.send(hub.fetch(file)));
        thread.map_err(|e| refused("a thread for the hub", e))?;
        answer.recv_timeout(Duration::from_secs(seconds)).unwrap_or_else(|_| {
            Err(Error::Failed(format!(
                "{}: cannot download {file}: no answer within {seconds} s (HF_HUB_ETAG_TIMEOUT sets the limit, \
                 HF_HUB_OFFLINE=1 takes what the cache holds)",
                self.name
            )))
        })
    }

    /// Downloads a file unless the cache holds it; `None` if the repository has no such file.
    fn fetch(&self, file: &str) -> Result<Option<PathBuf>> {
        tracing::info!("fetching {file} of {} ({})", self.name, self.revision);
        let download = || {
            let request = self.repository.download_file().filename(file).revision(self.revision.as_str());
            Ok(request.local_files_only(is_offline()).send())
        };
        let got = guarded(download).map_err(|problem: String| {
            Error::Failed(format!("{}: cannot download {file}: the hub's answer is {problem}", self.name))
        })?;
        match got {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            Err(error) => Err(Error::Failed(format!("{}: cannot download {file}: {}", self.name, reason(&error)))),
        }
    }
}

/// Whether only what the hub's cache holds may be used.
fn is_offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0"))
}

/// An error of the hub client in one line, with what lies beneath it and what to do.
fn reason(error: &HFError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    match error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } | HFError::RepoNotFound { .. } => format!(
            "{text} (is the name right? for a gated model accept its licence on huggingface.co and set HF_TOKEN)"
        ),
        HFError::LocalEntryNotFound { .. } => format!("{text} (HF_HUB_OFFLINE is set)"),
        _ => text,
    }
}
