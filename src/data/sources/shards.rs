//! Shards: tar files and folders, listed as references to samples without reading the samples' data.
//!
//! Memory: the references of one shard (about 200 bytes a sample); for a folder, its file names.
use super::byte_source::ByteSource;
use super::findings::{Finding, Findings};
use super::folder::{Paired, PictureFolder};
use super::gzip_shards::GzipShards;
use super::pairing::Pairing;
use super::unusable::Unusable;
use crate::system::{
    limits::{self, Limit},
    patience::patiently,
    platform::read_exact_at,
};
use crate::{Error, Result, config::DataFormat};
use std::{
    fs::File,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A tar file, or a folder without its subfolders, which are shards of their own.
#[derive(Clone, Debug)]
pub struct SampleShard {
    pub source: ByteSource,
    pub is_folder: bool,
    /// Path below the source, with a trailing slash; empty for the source itself.
    pub(super) below: String,
    /// Last component of the source.
    pub(super) source_name: String,
    /// `data.labels`, or empty.
    pub(super) labels: PathBuf,
    /// The folders that may hold its pictures' masks; coco: their label maps.
    pub mask_folders: Vec<PathBuf>,
    pub pairing: Arc<Pairing>,
    /// Index of its source's settings.
    pub settings: usize,
    /// The content of compressed shards.
    pub(super) unpacked: Arc<GzipShards>,
}

/// Where one file of a sample is stored.
#[derive(Clone, Debug)]
pub enum Member {
    /// A range of bytes of the shard's tar file.
    Part { offset: u64, length: u64 },
    /// A range of bytes of the tar file that was in a compressed shard.
    Unpacked { file: Arc<File>, offset: u64, length: u64 },
    /// A file in a folder.
    File(PathBuf),
}

/// Where the files of a sample are stored.
#[derive(Clone, Debug)]
pub struct SampleReference {
    pub shard: ByteSource,
    /// Index of its source's settings.
    pub settings: usize,
    /// How many times the sample came in its epoch before.
    pub repeat: u64,
    /// Path within the source, without extension.
    pub key: String,
    pub image: Member,
    /// sa1b: the JSON; folder: the label map, if there is one file; coco: `None`, see `labels`.
    pub annotation: Option<Member>,
    /// folder: the masks, where each is a file of its own.
    pub masks: Vec<Member>,
    /// `KEY.txt`.
    pub caption: Option<Member>,
    /// coco: possible paths of the label map below the label folder.
    pub labels: Vec<PathBuf>,
}

/// The name of an unusable sample or shard, and the reason.
#[derive(Clone, Debug)]
pub struct Broken {
    pub name: String,
    pub reason: String,
}

/// Reason for a sample without `KEY.txt` where one is needed.
pub const NO_CAPTION: &str = "there is no caption: neither data.captions nor a .txt beside the image";

/// Reason for a sample without annotations where they are needed.
pub const NO_JSON: &str = "there is no JSON beside the image";

/// An item of a scan; the order depends on the shard alone.
pub type Scanned = Result<SampleReference, Unusable<Broken>>;
/// A sample's reference, or why it is broken.
pub type Listed = Result<SampleReference, Broken>;

impl SampleReference {
    /// The sample's name in messages: its image file, or the tar file's path and the key.
    pub fn name(&self) -> String {
        match &self.image {
            Member::File(path) => path.display().to_string(),
            Member::Part { .. } | Member::Unpacked { .. } => format!("{}/{}", self.shard.path().display(), self.key),
        }
    }
}

impl Member {
    /// Its file, where it has one of its own.
    pub fn path(&self) -> Option<&Path> {
        if let Self::File(path) = self { Some(path) } else { None }
    }

    /// Reads the member, at most `limit` bytes.
    ///
    /// # Errors
    /// The file does not exist or is too long (broken); the machine cannot read it (fatal).
    pub fn read(&self, shard: &ByteSource, limit: Limit) -> Result<Vec<u8>, Unusable> {
        match self {
            Self::File(path) => limit.read(path).map_err(|problem| Unusable::reading(path, problem)),
            Self::Part { offset, length } => {
                limit.check(*length)?;
                let read = part(*length, |bytes| shard.read_exact_at(bytes, *offset));
                read.map_err(|problem| match shard {
                    ByteSource::File(path) if is_gone(&problem) => {
                        Unusable::Fatal(Error::file(path, format!("cannot be read any more: {problem}")))
                    }
                    _ => Unusable::reading(shard.path(), problem),
                })
            }
            Self::Unpacked { file, offset, length } => {
                limit.check(*length)?;
                let read = part(*length, |bytes| patiently(|| read_exact_at(file, bytes, *offset)));
                read.map_err(Unusable::temporary)
            }
        }
    }
}

/// Whether a file was taken away that was read before, when its samples were listed.
fn is_gone(problem: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    [NotADirectory, NotFound, PermissionDenied].contains(&problem.kind())
}

fn part(length: u64, read: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let mut bytes = limits::buffer(length as usize)?;
    read(&mut bytes)?;
    Ok(bytes)
}

impl SampleShard {
    /// Calls `visit` with each sample of the shard until it breaks. A damaged shard is an item too. What belongs to no
    /// sample of a tar file is counted; folders have their inventory.
    pub fn scan<B>(&self, findings: &mut Findings, visit: &mut dyn FnMut(Scanned) -> ControlFlow<B>) -> ControlFlow<B> {
        if self.is_folder { self.scan_folder(visit) } else { self.scan_tar(findings, visit) }
    }

    pub(super) fn broken(&self, key: &str, reason: impl ToString) -> Scanned {
        let path = self.source.path().display();
        let name = if key.is_empty() { path.to_string() } else { format!("{path}/{key}") };
        Err(Unusable::Broken(Broken { name, reason: reason.to_string() }))
    }

    /// A shard that cannot be read: broken, or fatal if the machine is at fault.
    pub(super) fn unreadable(&self, problem: io::Error) -> Scanned {
        match Unusable::reading(self.source.path(), problem) {
            Unusable::Broken(reason) => self.broken("", reason),
            Unusable::Fatal(error) => Err(Unusable::Fatal(error)),
        }
    }

    /// The names of a folder's files and of the folders with their masks.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn folder(&self, findings: &mut Findings) -> io::Result<PictureFolder> {
        PictureFolder::read(self.source.path(), &self.below, &self.mask_folders, self.pairing.clone(), findings)
    }

    /// Yields the photographs of a folder, sorted by name.
    fn scan_folder<B>(&self, visit: &mut dyn FnMut(Scanned) -> ControlFlow<B>) -> ControlFlow<B> {
        let folder = match self.folder(&mut Findings::default()) {
            Ok(folder) => folder,
            Err(problem) => return visit(self.unreadable(problem)),
        };
        folder.pair(&mut Findings::default(), |paired, _| match self.item_of_files(&folder, paired) {
            Some(item) => visit(item),
            None => ControlFlow::Continue(()),
        })
    }

    /// The sample of these files, or which of them it lacks; `None` if it is left out.
    fn item_of_files(&self, folder: &PictureFolder, paired: Paired) -> Option<Scanned> {
        let pairing = &self.pairing;
        let key = format!("{}{}", folder.below, paired.stem);
        let has_annotation = paired.json.is_some() || !paired.masks.is_empty();
        let lacked = pairing.lacks(paired.text.is_some(), has_annotation);
        match lacked {
            Some(lacked) if pairing.leaves_out(lacked) => return None,
            Some(Finding::CaptionMissing) => return Some(self.broken(&key, NO_CAPTION)),
            Some(Finding::AnnotationMissing) => return Some(self.broken(&key, NO_JSON)),
            _ => {}
        }
        let file = |folder: Option<&Path>, name: &str| folder.unwrap_or(self.source.path()).join(name);
        let member = |name| Member::File(file(None, name));
        let mut masks: Vec<PathBuf> = paired.masks.iter().map(|&(folder, name)| file(folder, name)).collect();
        let labels = match pairing.format {
            // Paths below data.labels.
            DataFormat::Coco if pairing.panoptic || masks.is_empty() => {
                let name = PathBuf::from(format!("{key}.png"));
                vec![Path::new(&self.source_name).join(&name), name]
            }
            DataFormat::Coco => {
                let below = |path: PathBuf| path.strip_prefix(&self.labels).map(Path::to_owned).unwrap_or(path);
                std::mem::take(&mut masks).into_iter().map(below).collect()
            }
            _ => Vec::new(),
        };
        let annotation = match (paired.json, masks.as_slice()) {
            (Some(json), _) => Some(member(json)),
            (None, [_]) if !paired.are_numbered => masks.pop().map(Member::File),
            (None, _) => None,
        };
        Some(Ok(SampleReference {
            shard: self.source.clone(),
            settings: self.settings,
            repeat: 0,
            key,
            image: member(paired.picture),
            annotation,
            masks: masks.into_iter().map(Member::File).collect(),
            caption: paired.text.map(member),
            labels,
        }))
    }
}
