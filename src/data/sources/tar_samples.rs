//! Samples of a tar file: its members by their keys, in any order.
use super::byte_source::ByteReader;
use super::findings::{Finding, Findings};
use super::gzip_shards::Unpacked;
use super::names::{Role, composed, is_compressed, is_mask_folder, is_passed_over, mask_name, role};
use super::pairing::Pairing;
use super::shards::{Broken, Member, NO_CAPTION, NO_JSON, SampleReference, SampleShard, Scanned};
use super::tar_members::{Members, TarPart};
use super::unusable::Unusable;
use super::walk::{last_component, without_picture_folders};
use crate::config::DataFormat;
use crate::system::guard::guarded;
use std::collections::{BTreeMap, HashMap, HashSet, btree_map::Entry};
use std::io;
use std::ops::{ControlFlow, Range};

/// The members of one key.
#[derive(Default)]
struct SampleFiles {
    /// A picture that is no PNG.
    image: Option<Member>,
    /// Whether `image` is a JPEG.
    is_jpeg: bool,
    /// folder: a label map if there is another image, otherwise the image.
    png: Option<Member>,
    json: Option<Member>,
    text: Option<Member>,
    /// Name of a picture in a format that is not read.
    unread: Option<String>,
    /// folder: label maps without a number, then masks by their numbers.
    masks: BTreeMap<Option<u32>, Member>,
    /// folder: whether the picture is a mask of none.
    is_lone_mask: bool,
    /// Index of the first member in the shard.
    place: usize,
}

impl SampleShard {
    /// Reads header after header and yields each sample at its last member. Samples of which more may come (those whose
    /// image is a PNG, all of format folder), incomplete samples, and the samples lost to damage are yielded at the end.
    pub(super) fn scan_tar<B>(
        &self,
        findings: &mut Findings,
        visit: &mut dyn FnMut(Scanned) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let (mut members, unpacked) = match self.members() {
            Ok(members) => members,
            Err(problem) => return visit(self.unreadable(problem)),
        };
        let pairing = &*self.pairing;
        let member = |offset, length| match &unpacked {
            Some(Unpacked { file, .. }) => Member::Unpacked { file: file.clone(), offset, length },
            None => Member::Part { offset, length },
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
                TarPart::Member { name, .. } => {
                    let is_data = key_and_role(&name).is_some_and(|(_, role)| role != Role::Other);
                    if is_data && !name.ends_with('/') {
                        findings.add(Finding::NoPlainFile, &name);
                    }
                    continue;
                }
                TarPart::Damage { start, end, problem } => {
                    damage.add(place, start..end, &problem);
                    continue;
                }
            };
            let Some((key, role)) = key_and_role(&name) else { continue };
            if let Some(finding) = unused(role, pairing, yielded.contains(key)) {
                findings.add(finding, &name);
                continue;
            }
            damage.sample_until(key, offset + length);
            let parts =
                pending.entry(key.to_owned()).or_insert_with(|| SampleFiles { place, ..SampleFiles::default() });
            if parts.add(role, &name, member(offset, length)) {
                visit(self.broken(key, format!("{name} occurs twice")))?;
            }
            if parts.is_whole(pairing)
                && let Some(parts) = pending.remove(key)
            {
                visit(self.item(key, parts))?;
                yielded.insert(key.to_owned());
            }
        }
        if members.is_unended && damage.parts.is_empty() {
            findings.add(Finding::Unended, &self.source.path().display().to_string());
        }
        if pairing.format == DataFormat::Folder {
            join_masks(&mut pending, findings);
        }
        let mut rest: Vec<(String, SampleFiles)> = pending.into_iter().collect();
        rest.sort_by_key(|(_, parts)| parts.place);
        let mut halves = 0;
        for (key, parts) in rest {
            if let Some(lacked) = parts.lacks(pairing) {
                findings.add(lacked, parts.unread.as_ref().unwrap_or(&key));
                // A text alone is more often about the data than a caption; it is no lost sample.
                if pairing.leaves_out(lacked) || lacked == Finding::CaptionAlone {
                    continue;
                }
            }
            let mut item = self.item(&key, parts);
            if let Err(Unusable::Broken(Broken { reason, .. })) = &mut item {
                halves += 1;
                if !damage.parts.is_empty() {
                    *reason += &format!(" ({})", damage.first);
                }
            }
            visit(item)?;
        }
        let lost = damage.samples().saturating_sub(halves);
        (0..lost).try_for_each(|_| visit(self.broken("", &damage.first)))?;
        match unpacked.and_then(|unpacked| unpacked.damage) {
            Some(problem) => visit(self.broken("", problem)),
            None => ControlFlow::Continue(()),
        }
    }

    /// The sample made of `parts`, or which file it lacks.
    fn item(&self, key: &str, parts: SampleFiles) -> Scanned {
        match parts.lacks(&self.pairing) {
            Some(Finding::UnreadPicture) => {
                let picture = parts.unread.unwrap_or_default();
                return self.broken(key, format!("{picture} is in a format that is not read"));
            }
            Some(Finding::MaskAlone) => return self.broken(key, "there is no image of this mask"),
            Some(Finding::AnnotationAlone) => return self.broken(key, "there is no image beside the JSON"),
            Some(Finding::CaptionMissing) => return self.broken(key, NO_CAPTION),
            Some(_) => return self.broken(key, NO_JSON),
            None => {}
        }
        let (image, label_map) = match (parts.image, parts.png) {
            (Some(image), png) => (image, png),
            (None, Some(png)) => (png, None),
            (None, None) => return self.broken(key, "there is no image"),
        };
        let is_folder = self.pairing.format == DataFormat::Folder;
        let (annotation, masks) = match parts.masks {
            _ if !is_folder => (parts.json, Vec::new()),
            masks if label_map.is_none() && !masks.contains_key(&None) => (None, masks.into_values().collect()),
            mut masks => (label_map.or_else(|| masks.remove(&None)), Vec::new()),
        };
        Ok(SampleReference {
            shard: self.source.clone(),
            settings: self.settings,
            repeat: 0,
            key: composed(key).into_owned(),
            image,
            annotation,
            masks,
            caption: parts.text,
            labels: Vec::new(),
        })
    }

    /// The members, which lie in the temporary file that a compressed shard was unpacked into.
    fn members(&self) -> io::Result<(Members, Option<Unpacked>)> {
        if is_compressed(&last_component(self.source.path())) || self.source.is_gzip()? {
            let unpacked = self.unpacked.unpacked(&self.source)?;
            return Ok((Members::new(ByteReader::file(unpacked.file.clone())?), Some(unpacked)));
        }
        Ok((Members::new(self.source.open()?), None))
    }
}

/// What a member is that no sample takes, `is_late` where its sample was complete without it.
fn unused(role: Role, pairing: &Pairing, is_late: bool) -> Option<Finding> {
    match role {
        Role::Other | Role::Metadata => Some(Finding::Other),
        Role::Archive | Role::Tar => Some(Finding::Archive),
        // Beside the JPEG it would not have been the image.
        Role::Picture(_) if is_late => Some(Finding::SecondPicture),
        Role::Text | Role::Caption if !pairing.text => Some(pairing.unused_caption()),
        Role::Json if pairing.format == DataFormat::Folder => Some(Finding::UnusedAnnotation),
        _ => None,
    }
}

/// Gives masks to their pictures: `x_mask` and `x.0` beside `x`, and `masks/x` beside `images/x`.
fn join_masks(pending: &mut HashMap<String, SampleFiles>, findings: &mut Findings) {
    let mut pictures: HashMap<String, String> = HashMap::new();
    let has_picture = |parts: &SampleFiles| parts.image.is_some() || parts.png.is_some();
    for (key, _) in pending.iter().filter(|(key, parts)| has_picture(parts) && !is_in_mask_folder(key)) {
        let (folder, stem) = key.split_at(key.rfind('/').map_or(0, |slash| slash + 1));
        for folder in without_picture_folders(folder) {
            pictures.insert(format!("{folder}{stem}"), key.clone());
        }
    }
    let mut masks: Vec<(String, Option<u32>, String)> = Vec::new();
    for (key, parts) in pending.iter_mut().filter(|(_, parts)| has_picture(parts)) {
        let (folder, stem) = key.split_at(key.rfind('/').map_or(0, |slash| slash + 1));
        let named = mask_name(stem);
        let within = is_in_mask_folder(key);
        let folder: String =
            folder.split_inclusive('/').filter(|name| !is_mask_folder(name.trim_end_matches('/'))).collect();
        let own = within.then_some((stem, None));
        let by_name = named.filter(|named| named.says_mask || within || !parts.is_jpeg);
        let by_name = by_name.map(|named| (named.picture, named.number));
        let found = own
            .into_iter()
            .chain(by_name)
            .find_map(|(stem, number)| Some((pictures.get(&format!("{folder}{stem}"))?.clone(), number)));
        match found {
            Some((picture, number)) if picture != *key => masks.push((key.clone(), number, picture)),
            _ => {
                // Called a mask, and nothing shows that it is a photograph.
                let is_named = named.is_some_and(|named| named.says_mask) && parts.text.is_none() && !parts.is_jpeg;
                parts.is_lone_mask = within || is_named;
            }
        }
    }
    // Whatever the order of a hash map was.
    masks.sort();
    for (key, number, picture) in masks {
        let Some(parts) = pending.remove(&key) else { continue };
        if parts.text.is_some() {
            findings.add(Finding::CaptionAlone, &key);
        }
        let finding = match (parts.image.or(parts.png), pending.get_mut(&picture)) {
            (Some(mask), Some(picture)) if !parts.is_jpeg => match picture.masks.entry(number) {
                Entry::Vacant(place) => {
                    place.insert(mask);
                    continue;
                }
                Entry::Occupied(_) => Finding::SecondMask,
            },
            _ => Finding::JpegMask,
        };
        findings.add(finding, &key);
    }
}

fn is_in_mask_folder(key: &str) -> bool {
    key.rsplit('/').skip(1).any(is_mask_folder)
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
}

impl SampleFiles {
    /// Stores a member by its role; true if there was one already.
    fn add(&mut self, role: Role, name: &str, member: Member) -> bool {
        let slot = match role {
            Role::Picture(_) if role.is_png() => &mut self.png,
            Role::Picture(_) => {
                self.is_jpeg = role.is_jpeg();
                &mut self.image
            }
            Role::Json => &mut self.json,
            Role::Text | Role::Caption => &mut self.text,
            Role::UnreadPicture => {
                self.unread = Some(name.to_owned());
                return false;
            }
            _ => return false,
        };
        slot.replace(member).is_some()
    }

    /// Whether no further member is needed. A JPEG may still follow a PNG, and masks may follow anything.
    fn is_whole(&self, pairing: &Pairing) -> bool {
        let is_whole = self.image.is_some() && self.json.is_some() && (self.text.is_some() || !pairing.text);
        is_whole && pairing.format == DataFormat::Sa1b
    }

    /// What these files lack to be a sample, if anything.
    fn lacks(&self, pairing: &Pairing) -> Option<Finding> {
        match (&self.image, &self.png) {
            (None, None) if self.unread.is_some() => Some(Finding::UnreadPicture),
            (None, None) if self.json.is_some() => Some(Finding::AnnotationAlone),
            (None, None) => Some(Finding::CaptionAlone),
            _ if self.is_lone_mask => Some(Finding::MaskAlone),
            (image, png) => {
                let has_mask = !self.masks.is_empty() || image.is_some() && png.is_some();
                let has_annotation = self.json.is_some() || pairing.format == DataFormat::Folder && has_mask;
                pairing.lacks(self.text.is_some(), has_annotation)
            }
        }
    }
}

/// Splits a path into its key, without leading `./`, and its role; `None` for what lies around everywhere.
fn key_and_role(path: &str) -> Option<(&str, Role)> {
    let path = path.trim_start_matches("./");
    if path.split('/').filter(|name| !matches!(*name, "." | "..")).any(is_passed_over) {
        return None;
    }
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    let (stem, role) = role(&path[start..]);
    Some((path.get(..start + stem.len())?, role))
}
