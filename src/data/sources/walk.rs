//! From `data.source` to shards: patterns are expanded, folders walked.
use super::byte_source::ByteSource;
use super::findings::{Finding, Findings};
use super::gzip_shards::GzipShards;
use super::names::{Role, is_mask_folder, is_passed_over, is_picture_folder, role, says_repeats};
use super::pairing::Pairing;
use super::patterns::{Expanded, expand};
use super::remote::{self, Object};
use super::shards::SampleShard;
use crate::config::{DataConfig, DataFormat};
use crate::system::paths::{find, is_folder};
use crate::system::patience::patiently;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What an entry of `data.source`, or a table of `data.sources`, leads to.
#[derive(Default)]
pub struct FoundSource {
    /// The path or pattern.
    pub name: String,
    /// Index of its settings in [`Sources::settings`].
    pub settings: usize,
    /// How often its samples come in an epoch.
    pub repeats: f64,
    pub shards: Vec<SampleShard>,
    /// The folders with masks of the pictures in `shards`.
    pub mask_folders: Vec<PathBuf>,
    /// Files with the captions of a whole folder.
    metadata: Vec<PathBuf>,
    /// What was met on the way and is not entered or read.
    pub findings: Findings,
}

/// All sources of a run.
pub struct Sources {
    /// The settings of each group of sources: one for `data.source`, one for each table of `data.sources`.
    pub settings: Vec<DataConfig>,
    pub found: Vec<FoundSource>,
}

impl Sources {
    /// Lists folders and patterns; each shard of one group comes once. Patterns are expanded in alphabetical order, folders
    /// recursively (a folder with tar files yields those).
    ///
    /// # Errors
    /// A path matches nothing, or the format cannot read what it matches.
    pub fn open(config: &DataConfig) -> Result<Self> {
        let unpacked = Arc::new(GzipShards::default());
        let mut sources = Self { settings: Vec::new(), found: Vec::new() };
        for (mut settings, repeats) in config.per_source() {
            let mut seen = HashSet::new();
            let mut group = Vec::new();
            let mut objects = remote::find(&settings.source, &settings)?;
            for name in &settings.source {
                let mut walk = Walk::new(&settings, name, &unpacked);
                match objects.remove(name) {
                    Some(objects) => walk.objects(objects),
                    None => walk.paths(name)?,
                }
                let mut source = walk.found;
                (source.settings, source.repeats) = (sources.settings.len(), repeats);
                // Objects are distinct, and two may be shown by the same path.
                let is_object = |shard: &SampleShard| matches!(shard.source, ByteSource::Object(_));
                source.shards.retain(|shard| is_object(shard) || seen.insert(shard.source.path().to_owned()));
                group.push(source);
            }
            let is_named = settings.captions.is_some();
            if !is_named && settings.has_prompts {
                settings.captions = metadata(&group)?;
            }
            let mut pairing = Pairing::of(&settings);
            pairing.metadata = !is_named && settings.captions.is_some();
            let pairing = Arc::new(pairing);
            for shard in group.iter_mut().flat_map(|source| &mut source.shards) {
                (shard.pairing, shard.settings) = (pairing.clone(), sources.settings.len());
            }
            sources.found.extend(group);
            sources.settings.push(settings);
        }
        match sources.found.is_empty() {
            true => Err(Error::Usage("data.source is empty".into())),
            false => Ok(sources),
        }
    }
}

/// The file with the captions of these sources, if they have one.
fn metadata(sources: &[FoundSource]) -> Result<Option<PathBuf>> {
    match sources.iter().flat_map(|source| &source.metadata).collect::<Vec<_>>().as_slice() {
        [] => Ok(None),
        [file] => Ok(Some((*file).clone())),
        [first, second, ..] => Err(Error::Usage(format!(
            "data.source: {} and {} both hold captions; give each folder a table [[data.sources]] of its own, or name one \
             file of captions in data.captions",
            first.display(),
            second.display()
        ))),
    }
}

/// Of a path or URL; empty where it has none.
pub(super) fn last_component(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// # Errors
/// The file is no shard of this format, by its name.
fn check_file(path: &Path, name: &str, format: DataFormat) -> Result<()> {
    let problem = match (format, role(name).1) {
        (DataFormat::Coco, _) => "is no folder",
        (_, Role::Tar) => return Ok(()),
        (_, Role::Picture(_) | Role::UnreadPicture) => "is a picture: name the folder that it is in",
        (_, Role::Json | Role::Metadata) => "is no folder and no shard: captions belong into data.captions",
        _ => "is neither a folder nor a .tar, .tar.gz or .tgz",
    };
    Err(Error::Usage(format!("data.source: {} {problem}", path.display())))
}

struct Walk<'a> {
    config: &'a DataConfig,
    /// Last component of the path that is walked.
    source_name: String,
    /// coco: the folder of label maps, which holds no photographs.
    labels: Option<PathBuf>,
    /// The folders with masks for the pictures of a folder, by that folder's path below the source.
    masks: BTreeMap<String, Vec<PathBuf>>,
    /// The compressed shards of all sources.
    unpacked: Arc<GzipShards>,
    found: FoundSource,
}

impl<'a> Walk<'a> {
    fn new(config: &'a DataConfig, source: &str, unpacked: &Arc<GzipShards>) -> Self {
        let labels = config.labels.as_ref().map(std::fs::canonicalize);
        Self {
            config,
            source_name: String::new(),
            // One that is not there is reported by what reads it.
            labels: labels.and_then(|path| path.ok()),
            masks: BTreeMap::new(),
            unpacked: unpacked.clone(),
            found: FoundSource { name: remote::shown(source), ..FoundSource::default() },
        }
    }

    /// The shards of a URL.
    fn objects(&mut self, objects: Vec<Arc<Object>>) {
        for object in objects {
            self.source_name = last_component(object.path());
            self.push(ByteSource::Object(object), "", false);
        }
    }

    /// The folders and files that a path or pattern names.
    fn paths(&mut self, source: &str) -> Result<()> {
        let paths = match expand(source)? {
            Expanded::Paths(paths) => paths,
            Expanded::Missing(part) => return Err(Error::Usage(format!("data.source: nothing matches `{part}`"))),
        };
        for path in paths {
            let first = self.found.shards.len();
            self.source_name = last_component(&path);
            if is_folder(&path)? {
                if says_repeats(&self.source_name) {
                    self.found.findings.add(Finding::RepeatsInName, &self.source_name);
                }
                self.folder(&path, "", None)?;
                self.masks_beside(&path)?;
            } else {
                check_file(&path, &self.source_name, self.config.format)?;
                self.push(ByteSource::File(path.into()), "", false);
            }
            self.join_masks(first);
        }
        if self.found.shards.is_empty() {
            return Err(Error::Usage(format!("data.source: {source} holds no files")));
        }
        Ok(())
    }

    fn push(&mut self, source: ByteSource, below: &str, is_folder: bool) {
        self.found.shards.push(SampleShard {
            source,
            is_folder,
            below: below.to_owned(),
            source_name: self.source_name.clone(),
            labels: self.config.labels.clone().unwrap_or_default(),
            mask_folders: Vec::new(),
            pairing: Arc::new(Pairing::of(self.config)),
            settings: 0,
            unpacked: self.unpacked.clone(),
        });
    }

    /// Adds `folder` (or its tar files, if any) and its subfolders that hold files. It holds the masks of the pictures
    /// in `masks_of`, if that is given.
    fn folder(&mut self, folder: &Path, below: &str, masks_of: Option<&str>) -> Result<()> {
        let failed = |problem: io::Error| Error::file(folder, problem);
        let (mut inner, mut tars, mut has_files) = (Vec::new(), Vec::new(), false);
        let mut files = Findings::default();
        let is_coco = self.config.format == DataFormat::Coco;
        for entry in patiently(|| std::fs::read_dir(folder)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_passed_over(&name) {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            let (shown, role) = (format!("{below}{name}"), role(&name).1);
            match kind.is_symlink().then(|| find(&entry.path())) {
                Some(Ok(Some(found))) if found.is_dir() => self.found.findings.add(Finding::LinkedFolder, &shown),
                Some(Ok(None)) => self.found.findings.add(Finding::DeadLink, &shown),
                _ if kind.is_dir() => inner.push(name),
                _ if role == Role::Tar && !is_coco => tars.push(name),
                _ => {
                    has_files = true;
                    if role == Role::Metadata && masks_of.is_none() && !is_coco {
                        self.found.metadata.push(entry.path());
                    }
                    let is_data = !matches!(role, Role::Other | Role::Metadata);
                    files.add(if is_data { Finding::BesideShards } else { Finding::Other }, &shown);
                }
            }
        }
        inner.sort();
        tars.sort();
        if let Some(pictures) = masks_of {
            self.masks.entry(pictures.to_owned()).or_default().push(folder.to_path_buf());
            self.found.mask_folders.push(folder.to_path_buf());
        } else if !tars.is_empty() {
            self.found.findings.merge(files);
            tars.iter().for_each(|name| self.push(ByteSource::File(folder.join(name).into()), below, false));
        } else if has_files {
            self.push(ByteSource::File(folder.into()), below, true);
        }
        for name in inner {
            let path = folder.join(&name);
            if below.is_empty() && masks_of.is_none() && says_repeats(&name) {
                self.found.findings.add(Finding::RepeatsInName, &name);
            }
            let masks_of = match masks_of {
                Some(pictures) => Some(format!("{pictures}{name}/")),
                None if self.config.format == DataFormat::Folder && is_mask_folder(&name) => Some(below.to_owned()),
                None if self.labels.is_some() && std::fs::canonicalize(&path).ok() == self.labels => continue,
                None => None,
            };
            self.folder(&path, &format!("{below}{name}/"), masks_of.as_deref())?;
        }
        Ok(())
    }

    /// `masks` beside a source that is called `images`.
    fn masks_beside(&mut self, source: &Path) -> Result<()> {
        if self.config.format == DataFormat::Folder && is_picture_folder(&self.source_name) {
            for name in ["masks", "mask"] {
                let beside = source.with_file_name(name);
                if is_folder(&beside)? {
                    self.folder(&beside, &format!("../{name}/"), Some(""))?;
                }
            }
        }
        Ok(())
    }

    /// Gives each shard from `first` on the folders that may hold its pictures' masks.
    fn join_masks(&mut self, first: usize) {
        let labels = self.config.labels.as_deref().filter(|_| self.config.format == DataFormat::Coco);
        for shard in &mut self.found.shards[first..] {
            let places = without_picture_folders(&shard.below);
            shard.mask_folders = match labels {
                // The annotations say which label map is whose.
                Some(_) if shard.pairing.panoptic => Vec::new(),
                Some(labels) => {
                    let named = labels.join(&shard.source_name).join(&shard.below);
                    std::iter::once(named).chain(places.iter().map(|below| labels.join(below))).collect()
                }
                None => places.iter().flat_map(|below| self.masks.get(below).cloned().unwrap_or_default()).collect(),
            };
        }
        if labels.is_some() {
            for folder in self.found.shards[first..].iter().flat_map(|shard| &shard.mask_folders) {
                if !self.found.mask_folders.contains(folder) && is_folder(folder).unwrap_or(false) {
                    self.found.mask_folders.push(folder.clone());
                }
            }
        }
        self.masks.clear();
    }
}

/// `below`, and `below` without a component such as `images`.
pub(super) fn without_picture_folders(below: &str) -> Vec<String> {
    let components: Vec<&str> = below.split_terminator('/').collect();
    let without = |left_out: usize| {
        let kept = components.iter().enumerate().filter(|(place, _)| *place != left_out);
        kept.map(|(_, name)| format!("{name}/")).collect::<String>()
    };
    let shorter = (0..components.len()).filter(|&place| is_picture_folder(components[place])).map(without);
    std::iter::once(below.to_owned()).chain(shorter).collect()
}
