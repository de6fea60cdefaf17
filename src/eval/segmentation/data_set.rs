//! The layout of a segmentation data set: images, label maps, and the meaning of labels.
use crate::data::codec::photograph::EXTENSIONS;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits::CONFIG;
use crate::system::paths::may_be_file;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files in a folder and its subfolders whose names have one of the suffixes.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Folder of the files; subfolders count as part of the names.
    pub folder: PathBuf,
    /// Case-insensitive; a name without its suffix is the image's key.
    pub suffixes: Vec<String>,
}

/// The layout of a data set for segmentation.
#[derive(Clone, Debug, Default)]
pub struct SegmentationDataSet {
    /// Name for people.
    pub name: Option<String>,
    /// Where the images lie.
    pub images: Files,
    /// PNG label maps, with the keys of their images.
    pub labels: Files,
    /// A text file with one key a line: these images alone, in this order.
    pub list: Option<PathBuf>,
    /// The class list; if absent, the classes are those of `panoptic`.
    pub classes: Option<PathBuf>,
    /// COCO panoptic annotations: label maps hold segment ids, and this file each segment's class.
    pub panoptic: Option<PathBuf>,
    /// Labels that do not count.
    pub ignore: Vec<u32>,
    /// Whether labels without a name do not count either; otherwise they are an error.
    pub ignore_others: bool,
    /// The label that labels without a name are mapped to.
    pub others: Option<u32>,
    /// Labels that are mapped to other labels.
    pub merge: BTreeMap<u32, u32>,
}

/// A description as in `configs/eval`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    name: String,
    images: NamedFiles,
    labels: NamedFiles,
    list: Option<PathBuf>,
    classes: Option<PathBuf>,
    panoptic: Option<PathBuf>,
    #[serde(default)]
    ignore: Vec<u32>,
    #[serde(default)]
    ignore_others: bool,
    others: Option<u32>,
    #[serde(default)]
    merge: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedFiles {
    folder: PathBuf,
    suffix: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Merge {
    labels: Vec<u32>,
    into: u32,
}

impl SegmentationDataSet {
    /// Pictures of any format below `images`, PNG label maps of the same relative paths below `labels`.
    pub fn folders(images: &Path, labels: &Path, classes: &Path, ignore: &[u32]) -> Self {
        Self {
            images: Files::pictures(images),
            labels: Files { folder: labels.to_owned(), suffixes: vec![".png".into()] },
            classes: Some(classes.to_owned()),
            ignore: ignore.to_vec(),
            ..Self::default()
        }
    }

    /// Reads the TOML description `file` of a data set unpacked below `root`. Class lists are relative to `file`.
    ///
    /// # Errors
    /// The file cannot be read, or does not describe a data set.
    pub fn read(file: &Path, root: &Path) -> Result<Self> {
        let text = CONFIG.read_text(file).map_err(|problem| Error::file(file, problem))?;
        let read = guarded(|| {
            toml::from_str::<Description>(&text).map_err(|problem| {
                let before = problem.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
                format!("line {}: {}", 1 + before.matches('\n').count(), problem.message().replace('\n', " "))
            })
        });
        let described = read.map_err(|problem| Error::file(file, problem))?;
        if described.classes.is_none() && described.panoptic.is_none() {
            return Err(Error::file(file, "has neither classes nor panoptic annotations"));
        }
        if described.ignore_others && described.others.is_some() {
            return Err(Error::file(file, "has both ignore_others and others: labels without a name cannot be both"));
        }
        let mut merge = BTreeMap::new();
        for Merge { labels, into } in described.merge {
            for label in labels {
                if let Some(other) = merge.insert(label, into) {
                    return Err(Error::file(file, format!("label {label} is merged into both {other} and {into}")));
                }
            }
        }
        let files = |NamedFiles { folder, suffix }| Files { folder: root.join(folder), suffixes: vec![suffix] };
        Ok(Self {
            name: Some(described.name),
            images: files(described.images),
            labels: files(described.labels),
            list: described.list.map(|list| root.join(list)),
            classes: described.classes.map(|classes| file.with_file_name(classes)),
            panoptic: described.panoptic.map(|panoptic| root.join(panoptic)),
            ignore: described.ignore,
            ignore_others: described.ignore_others,
            others: described.others,
            merge,
        })
    }

    /// The error that a needed file is missing, with the expected content.
    pub fn missing(&self, path: &Path, expected: &str, problem: impl std::fmt::Display) -> Error {
        match &self.name {
            Some(name) => Error::file(path, format!("{problem}; {name} has {expected} here: is --root its folder?")),
            None => Error::file(path, problem),
        }
    }
}

impl Files {
    /// Lists the files by key.
    ///
    /// # Errors
    /// A folder cannot be read, or two files have equal keys.
    pub fn find(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut found = BTreeMap::new();
        let mut open = vec![String::new()];
        while let Some(below) = open.pop() {
            let folder = self.folder.join(&below);
            let failed = |problem| Error::file(&folder, problem);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with('.') {
                    continue;
                }
                let name = below.clone() + &name;
                if entry.file_type().map_err(failed)?.is_dir() {
                    open.push(name + "/");
                    continue;
                }
                let Some(key) = self.key(&name).filter(|_| may_be_file(&entry.path())) else { continue };
                if let Some(other) = found.insert(key.to_owned(), entry.path()) {
                    let problem = format!("has the same name as {}, but for the extension", other.display());
                    return Err(Error::file(entry.path(), problem));
                }
            }
        }
        Ok(found)
    }

    /// Pictures of any format.
    pub fn pictures(folder: &Path) -> Self {
        let suffixes = EXTENSIONS.iter().map(|extension| format!(".{extension}")).collect();
        Self { folder: folder.to_owned(), suffixes }
    }

    /// The suffixes as a pattern, for error messages.
    pub fn pattern(&self) -> String {
        self.suffixes.iter().map(|suffix| format!("*{suffix}")).collect::<Vec<_>>().join(", ")
    }

    fn key<'a>(&self, name: &'a str) -> Option<&'a str> {
        self.suffixes.iter().find_map(|suffix| {
            let (key, end) = name.split_at_checked(name.len().checked_sub(suffix.len())?)?;
            (end.eq_ignore_ascii_case(suffix) && !key.is_empty() && !key.ends_with('/')).then_some(key)
        })
    }
}
