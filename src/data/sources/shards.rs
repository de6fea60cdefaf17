//! Shards: tar files and folders, listed as references to samples without reading the samples' data.
//!
//! Memory: the references of one shard (about 200 bytes a sample); for a folder, its file names.
use super::byte_source::ByteSource;
use super::remote::{self, Object};
use super::tar_members::{Members, TarPart};
use super::unusable::Unusable;
use crate::system::{
    guard::guarded,
    limits::{self, Limit},
    paths::{exists, fixed_part, is_folder, may_be_file},
    patience::patiently,
};
use crate::{
    Error, Result,
    config::{DataConfig, DataFormat},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::ReadDir,
    io,
    ops::{ControlFlow, Range},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A tar file, or a folder without its subfolders, which are shards of their own.
#[derive(Clone, Debug)]
pub struct SampleShard {
    /// As messages name it; a URL without secrets for an object.
    pub path: Arc<Path>,
    pub source: ByteSource,
    is_folder: bool,
    /// Path below the source, with a trailing slash; empty for the source itself.
    below: String,
    /// Last component of the source.
    source_name: String,
}

/// Where one file of a sample is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// A range of bytes of the shard's tar file.
    Part { offset: u64, length: u64 },
    /// A file in a folder.
    File(PathBuf),
}

/// Where the files of a sample are stored.
#[derive(Clone, Debug)]
pub struct SampleReference {
    pub shard: ByteSource,
    /// Path within the source, without extension.
    pub key: String,
    pub image: Member,
    /// sa1b: the JSON; folder: the label map; coco: `None`, see `labels`.
    pub annotation: Option<Member>,
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

/// An item of a scan; the order depends on the shard alone.
pub type Scanned = Result<SampleReference, Unusable<Broken>>;
/// A sample's reference, or why it is broken.
pub type Listed = Result<SampleReference, Broken>;

/// Separates broken samples, which are counted, from the errors that end a scan.
pub fn listed(item: Scanned) -> Result<Listed> {
    match item {
        Ok(reference) => Ok(Ok(reference)),
        Err(Unusable::Broken(broken)) => Ok(Err(broken)),
        Err(Unusable::Fatal(error)) => Err(error),
    }
}

/// Which files make up a sample.
#[derive(Clone, Copy, Debug)]
pub struct Pairing {
    pub format: DataFormat,
    /// Whether `KEY.txt` is needed: the model takes prompts, and there is no captions file.
    pub text: bool,
}

impl Pairing {
    /// The rules for `config`.
    pub fn of(config: &DataConfig) -> Self {
        Self { format: config.format, text: config.has_prompts && config.captions.is_none() }
    }
}

impl SampleReference {
    /// The sample's name in messages: its image file, or the tar file's path and the key.
    pub fn name(&self) -> String {
        match &self.image {
            Member::File(path) => path.display().to_string(),
            Member::Part { .. } => format!("{}/{}", self.shard.path().display(), self.key),
        }
    }
}

#[derive(Default)]
struct SampleFiles {
    image: Option<Member>,
    /// A label map if there is another image, otherwise the image.
    png: Option<Member>,
    json: Option<Member>,
    text: Option<Member>,
    /// Index of the first member in the shard.
    place: usize,
}

impl Member {
    /// Reads the member, at most `limit` bytes.
    ///
    /// # Errors
    /// The file does not exist or is too long (broken); the machine cannot read it (fatal).
    pub fn read(&self, shard: &ByteSource, limit: Limit) -> Result<Vec<u8>, Unusable> {
        match self {
            Self::File(path) => limit.read(path).map_err(|problem| Unusable::reading(path, problem)),
            Self::Part { offset, length } => {
                limit.check(*length)?;
                let read = limits::buffer(*length as usize).and_then(|mut bytes| {
                    shard.read_exact_at(&mut bytes, *offset)?;
                    Ok(bytes)
                });
                read.map_err(|problem| Unusable::reading(shard.path(), problem))
            }
        }
    }
}

/// The shards of `data.source`, each once: globs are expanded in alphabetical order, folders recursively (sa1b:
/// a folder with tar files yields those).
///
/// # Errors
/// An entry matches nothing, or the format cannot read what it matches.
pub fn find(config: &DataConfig) -> Result<Vec<SampleShard>> {
    let mut shards: Vec<SampleShard> = Vec::new();
    let mut objects = remote::find(&config.source, config)?;
    for source in &config.source {
        if let Some(objects) = objects.remove(source) {
            shards.extend(objects.into_iter().map(SampleShard::object));
            continue;
        }
        let before = shards.len();
        for path in expand(source)? {
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            if is_folder(&path)? {
                folders(&path, config.format, "", &name, &mut shards)?;
            } else if config.format == DataFormat::Sa1b {
                shards.push(SampleShard::new(path, false, "", &name));
            } else {
                return Err(Error::Usage(format!("data.source: {} is no folder", path.display())));
            }
        }
        if shards.len() == before {
            return Err(Error::Usage(match is_folder(Path::new(source))? {
                true => format!("data.source: {source} holds no files"),
                false => format!("data.source: nothing matches `{source}`"),
            }));
        }
    }
    let mut seen = HashSet::new();
    // Objects are distinct, and two may be shown by the same path.
    shards.retain(|shard| matches!(shard.source, ByteSource::Object(_)) || seen.insert(shard.path.clone()));
    if shards.is_empty() {
        return Err(Error::Usage("data.source is empty".into()));
    }
    Ok(shards)
}

/// The paths of a source entry: itself if it exists, otherwise its matches as a glob.
fn expand(source: &str) -> Result<Vec<PathBuf>> {
    if exists(Path::new(source))? {
        return Ok(vec![PathBuf::from(source)]);
    }
    let paths = glob::glob(source).map_err(|problem| Error::Usage(format!("data.source: `{source}`: {problem}")))?;
    let paths = paths.map(|path| path.map_err(|problem| Error::file(problem.path(), problem.error())));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    if paths.is_empty() {
        // If the system reports a reason, return it instead of "matches nothing".
        exists(fixed_part(source))?;
    }
    Ok(paths)
}

/// sa1b without captions file: checks that some image of the first shard has a `.txt`.
pub fn check_captions(shards: &[SampleShard], pairing: Pairing) -> Result<()> {
    let (DataFormat::Sa1b, true, Some(shard)) = (pairing.format, pairing.text, shards.first()) else { return Ok(()) };
    let (mut has_caption, mut lacks_caption) = (false, false);
    // Samples without caption are yielded last, so a sound shard's scan stops at its first sample.
    let mut failed = None;
    let _ = shard.scan(pairing, &mut |item| {
        match item {
            Ok(_) => has_caption = true,
            Err(Unusable::Broken(broken)) => lacks_caption |= broken.reason == NO_CAPTION,
            Err(Unusable::Fatal(error)) => failed = Some(error),
        }
        if has_caption || failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    failed.map_or(Ok(()), Err)?;
    if lacks_caption && !has_caption {
        let text = "there are no captions: data.captions is missing, and";
        return Err(Error::Usage(format!(
            "{text} {} holds no KEY.txt beside KEY.jpg and KEY.json",
            shard.path.display()
        )));
    }
    Ok(())
}

/// Adds `folder` (sa1b: its tar files, if any) and its subfolders that hold files.
fn folders(
    folder: &Path,
    format: DataFormat,
    below: &str,
    source_name: &str,
    shards: &mut Vec<SampleShard>,
) -> Result<()> {
    let failed = |problem: io::Error| Error::file(folder, problem);
    let (mut inner, mut tars, mut has_files) = (Vec::new(), Vec::new(), false);
    for entry in patiently(|| std::fs::read_dir(folder)).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            inner.push(name);
        } else if format == DataFormat::Sa1b && name.ends_with(".tar") {
            tars.push(name);
        } else {
            has_files = true;
        }
    }
    inner.sort();
    tars.sort();
    let shard = |path, is_folder| SampleShard::new(path, is_folder, below, source_name);
    if tars.is_empty() && has_files {
        shards.push(shard(folder.to_path_buf(), true));
    }
    shards.extend(tars.iter().map(|name| shard(folder.join(name), false)));
    for name in inner {
        folders(&folder.join(&name), format, &format!("{below}{name}/"), source_name, shards)?;
    }
    Ok(())
}

impl SampleShard {
    fn new(path: PathBuf, is_folder: bool, below: &str, source_name: &str) -> Self {
        let path: Arc<Path> = path.into();
        let source = ByteSource::File(path.clone());
        Self { path, source, is_folder, below: below.to_owned(), source_name: source_name.to_owned() }
    }

    fn object(object: Arc<Object>) -> Self {
        let name = object.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self { source: ByteSource::Object(object.clone()), ..Self::new(object.path().to_owned(), false, "", &name) }
    }

    /// Calls `visit` with each sample of the shard until it breaks. A damaged shard is an item too.
    pub fn scan(&self, pairing: Pairing, visit: &mut dyn FnMut(Scanned) -> ControlFlow<()>) -> ControlFlow<()> {
        if self.is_folder { self.scan_folder(pairing, visit) } else { self.scan_tar(pairing, visit) }
    }

    fn broken(&self, key: &str, reason: impl ToString) -> Scanned {
        let name =
            if key.is_empty() { self.path.display().to_string() } else { format!("{}/{key}", self.path.display()) };
        Err(Unusable::Broken(Broken { name, reason: reason.to_string() }))
    }

    /// A shard that cannot be read: broken, or fatal if the machine is at fault.
    fn unreadable(&self, problem: io::Error) -> Scanned {
        match Unusable::reading(&self.path, problem) {
            Unusable::Broken(reason) => self.broken("", reason),
            Unusable::Fatal(error) => Err(Unusable::Fatal(error)),
        }
    }

    /// Reads header after header and yields each sample at its last member. Samples whose image is a PNG, incomplete
    /// samples, and the samples lost to damage are yielded at the end.
    fn scan_tar(&self, pairing: Pairing, visit: &mut dyn FnMut(Scanned) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut members = match self.source.open().map(Members::new) {
            Ok(members) => members,
            Err(problem) => return visit(self.unreadable(problem)),
        };
        let mut pending: HashMap<String, SampleFiles> = HashMap::new();
        let mut yielded: HashSet<String> = HashSet::new();
        let mut damage = Damage::default();
        for place in 0.. {
            let part = match guarded(|| Ok::<_, String>(members.step())) {
                Ok(Ok(Some(part))) => part,
                Ok(Ok(None)) => break,
                Ok(Err(problem)) => return visit(self.unreadable(problem)),
                Err(problem) => return visit(self.broken("", problem)),
            };
            let (name, offset, length) = match part {
                TarPart::Member { name, offset, length, is_file: true } => (name, offset, length),
                TarPart::Member { .. } => continue,
                TarPart::Damage { start, end, problem } => {
                    damage.add(place, start..end, &problem);
                    continue;
                }
            };
            let Some((key, extension)) = split_name(&name) else { continue };
            if extension == "png" && yielded.contains(key) {
                continue; // beside the JPEG it would not have been the image
            }
            damage.sample_until(key, offset + length);
            let parts =
                pending.entry(key.to_owned()).or_insert_with(|| SampleFiles { place, ..SampleFiles::default() });
            if parts.add(&extension, Member::Part { offset, length }) {
                visit(self.broken(key, format!("{name} occurs twice")))?;
            }
            if parts.is_whole(pairing)
                && let Some(parts) = pending.remove(key)
            {
                visit(self.item(key, parts, pairing))?;
                yielded.insert(key.to_owned());
            }
        }
        let mut rest: Vec<(String, SampleFiles)> = pending.into_iter().collect();
        rest.sort_by_key(|(_, parts)| parts.place);
        let mut halves = 0;
        for (key, parts) in rest {
            if parts.image.is_some() || parts.png.is_some() || parts.json.is_some() {
                let mut item = self.item(&key, parts, pairing);
                if let Err(Unusable::Broken(Broken { reason, .. })) = &mut item {
                    halves += 1;
                    *reason = damage.explain(std::mem::take(reason));
                }
                visit(item)?;
            }
        }
        let lost = damage.samples().saturating_sub(halves);
        (0..lost).try_for_each(|_| visit(self.broken("", &damage.first)))
    }

    /// Yields the images of a folder, sorted by name.
    fn scan_folder(&self, pairing: Pairing, visit: &mut dyn FnMut(Scanned) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut stems: BTreeMap<String, SampleFiles> = BTreeMap::new();
        let entries = patiently(|| std::fs::read_dir(&self.path).and_then(ReadDir::collect::<io::Result<Vec<_>>>));
        let entries = match entries {
            Ok(entries) => entries,
            Err(problem) => return visit(self.unreadable(problem)),
        };
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((stem, extension)) = split_name(&name)
                && may_be_file(&entry.path())
            {
                stems.entry(stem.to_owned()).or_default().add(&extension, Member::File(entry.path()));
            }
        }
        let mask_of: HashMap<String, Member> = if pairing.format == DataFormat::Folder {
            let masks: Vec<String> = stems.keys().filter(|stem| is_mask_of_another(stem, &stems)).cloned().collect();
            let taken = masks.into_iter().filter_map(|stem| Some((stem.clone(), stems.remove(&stem)?.png?)));
            taken.collect()
        } else {
            HashMap::new()
        };
        for (stem, mut parts) in stems {
            if parts.image.is_none() && parts.png.is_none() {
                continue;
            }
            if let Some(mask) = mask_of.get(&format!("{stem}_mask")) {
                parts.image = parts.image.or(parts.png.take());
                parts.png = Some(mask.clone());
            }
            visit(self.item(&format!("{}{stem}", self.below), parts, pairing))?;
        }
        ControlFlow::Continue(())
    }

    /// The sample made of `parts`, or which file it lacks.
    fn item(&self, key: &str, parts: SampleFiles, pairing: Pairing) -> Scanned {
        let (image, label_map) = match (parts.image, parts.png) {
            (Some(image), png) => (image, png),
            (None, Some(png)) => (png, None),
            (None, None) => return self.broken(key, "there is no image beside the JSON"),
        };
        let annotation = match pairing.format {
            DataFormat::Sa1b => match parts.json {
                None => return self.broken(key, "there is no JSON beside the image"),
                json => json,
            },
            DataFormat::Coco => None,
            DataFormat::Folder => label_map,
        };
        if pairing.format == DataFormat::Sa1b && pairing.text && parts.text.is_none() {
            return self.broken(key, NO_CAPTION);
        }
        let labels = if pairing.format == DataFormat::Coco {
            let name = PathBuf::from(format!("{key}.png"));
            vec![Path::new(&self.source_name).join(&name), name]
        } else {
            Vec::new()
        };
        let caption = parts.text.filter(|_| pairing.text);
        Ok(SampleReference { shard: self.source.clone(), key: key.to_owned(), image, annotation, caption, labels })
    }
}

/// The unreadable parts of a tar file, and an estimate of the samples lost.
#[derive(Default)]
struct Damage {
    /// Bytes of each unreadable part.
    parts: Vec<u64>,
    /// Description of the first part.
    first: String,
    /// Samples seen, the last one, and the readable bytes up to its end, which give a sample's mean size.
    samples: u64,
    last: Option<String>,
    readable: u64,
}

impl Damage {
    fn add(&mut self, place: usize, part: Range<u64>, problem: &str) {
        if self.parts.is_empty() {
            self.first = format!("no readable tar file from member {place} on: {problem}");
        }
        self.parts.push(part.end - part.start);
    }

    /// Records a member of the sample `key` that ends at byte `end`.
    fn sample_until(&mut self, key: &str, end: u64) {
        if self.last.as_deref() != Some(key) {
            self.samples += 1;
            self.last = Some(key.to_owned());
        }
        self.readable = end.saturating_sub(self.parts.iter().sum());
    }

    /// Estimated number of lost samples: the parts' bytes over the mean size, at least one for each part.
    fn samples(&self) -> u64 {
        let mean = (self.readable / self.samples.max(1)).max(1);
        let lost = |bytes: &u64| if self.samples == 0 { 1 } else { ((bytes + mean / 2) / mean).max(1) };
        self.parts.iter().map(lost).sum()
    }

    /// Adds the damage to the reason why a sample is incomplete.
    fn explain(&self, reason: String) -> String {
        if self.parts.is_empty() { reason } else { format!("{reason} ({})", self.first) }
    }
}

impl SampleFiles {
    /// Stores a member by its extension; true if there was one already.
    fn add(&mut self, extension: &str, member: Member) -> bool {
        let slot = match extension {
            "jpg" | "jpeg" => &mut self.image,
            "png" => &mut self.png,
            "json" => &mut self.json,
            "txt" => &mut self.text,
            _ => return false,
        };
        slot.replace(member).is_some()
    }

    /// Whether no further member is needed. A JPEG may still follow a PNG.
    fn is_whole(&self, pairing: Pairing) -> bool {
        self.image.is_some() && self.json.is_some() && (self.text.is_some() || !pairing.text)
    }
}

/// Splits a path into stem and lower-case extension, without leading `./`; `None` for hidden files and files without
/// extension.
pub(crate) fn split_name(path: &str) -> Option<(&str, String)> {
    let path = path.trim_start_matches("./");
    let name = path.rsplit('/').next().filter(|name| !name.starts_with('.'))?;
    let (_, extension) = name.rsplit_once('.')?;
    Some((path.get(..path.len() - extension.len() - 1)?, extension.to_ascii_lowercase()))
}

/// Whether `stem` is `x_mask`, has a PNG, and there is an image `x`.
fn is_mask_of_another(stem: &str, stems: &BTreeMap<String, SampleFiles>) -> bool {
    let has_png = stems.get(stem).is_some_and(|parts| parts.png.is_some() && parts.image.is_none());
    let image = stem.strip_suffix("_mask").and_then(|image| stems.get(image));
    has_png && image.is_some_and(|parts| parts.image.is_some() || parts.png.is_some())
}
