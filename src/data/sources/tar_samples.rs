//! Samples of a tar file: its members by their keys, in any order.
use super::names::composed;
use super::shards::{Broken, Member, NO_CAPTION, NO_JSON, Pairing, SampleReference, SampleShard, Scanned};
use super::tar_members::{Members, TarPart};
use super::unusable::Unusable;
use crate::system::guard::guarded;
use crate::system::patience;
use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, Range};

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

impl SampleShard {
    /// Reads header after header and yields each sample at its last member. Samples whose image is a PNG, incomplete
    /// samples, and the samples lost to damage are yielded at the end.
    pub(super) fn scan_tar(&self, visit: &mut dyn FnMut(Scanned) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut members = match patience::open(&self.path).and_then(Members::new) {
            Ok(members) => members,
            Err(problem) => return visit(self.unreadable(problem)),
        };
        let pairing = self.pairing;
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

    /// The sample made of `parts`, or which file it lacks.
    fn item(&self, key: &str, parts: SampleFiles, pairing: Pairing) -> Scanned {
        let Some(image) = parts.image.or(parts.png) else {
            return self.broken(key, "there is no image beside the JSON");
        };
        let (annotation, caption) = (parts.json, parts.text.filter(|_| pairing.text));
        if annotation.is_none() {
            return self.broken(key, NO_JSON);
        }
        if pairing.text && caption.is_none() {
            return self.broken(key, NO_CAPTION);
        }
        let (key, shard) = (composed(key).into_owned(), self.path.clone());
        let (masks, labels) = (Vec::new(), Vec::new());
        Ok(SampleReference {
            shard,
            settings: self.settings,
            repeat: 0,
            key,
            image,
            annotation,
            masks,
            caption,
            labels,
        })
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
