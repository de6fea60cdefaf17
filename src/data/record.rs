//! A record of a data set: the names and sizes of all that a run is trained on, so that a resumed run notices what was
//! added, removed or changed.
//!
//! Of a folder it lists each sample's files, of a tar file its name and size. Absolute paths are not in it: a data set that
//! has moved has the record that it had.
use super::data_set::DataSet;
use super::sources::byte_source::ByteSource;
use super::sources::shards::{Member, SampleReference};
use crate::model::weights::fingerprint::{sha256, sha256_of};
use crate::system::error::{Error, Result};
use crate::system::limits::DATA_RECORD;
use crate::system::paths::{find, is_file};
use crate::system::whole_file::write_atomically;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::path::Path;

/// Names that a message gives.
const NAMED: usize = 3;
/// Kinds of lines.
const SAMPLE: &str = "sample";
const SHARD: &str = "shard";
const FILE: &str = "file";
const BROKEN: &str = "broken";

/// The names and sizes of a data set's files, in the order of the sources: a line `KIND SIZES NAME` for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataRecord(String);

/// What identifies a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFingerprint {
    /// SHA-256 of the record.
    pub sha256: String,
    /// Samples of folders and tar files.
    pub entries: u64,
}

impl DataRecord {
    /// Lists the data set.
    ///
    /// # Errors
    /// There are no captions where they are needed; a source or a file that the settings name cannot be read.
    pub fn of(data: &DataSet) -> Result<Self> {
        data.check_captions()?;
        let mut record = Self::default();
        for (number, reader) in data.readers.iter().enumerate() {
            let settings = &reader.config;
            let section = if number == 0 { "data".to_string() } else { format!("data.sources {number}") };
            for (key, file) in [
                ("captions", &settings.captions.clone().filter(|_| settings.has_prompts)),
                ("panoptic", &settings.panoptic),
                ("instances", &settings.instances),
                ("classes", &settings.classes),
            ] {
                if let Some(file) = file {
                    record.add(FILE, &sha256(file)?.0, &format!("{section}.{key}"));
                }
            }
        }
        let mut broken = 0;
        for shard in data.shards() {
            if shard.is_folder {
                data.for_each_of(shard, |item| {
                    match item {
                        Ok(reference) => {
                            let labels = data.readers[reference.settings].config.labels.as_deref();
                            let sizes = sizes(&reference, labels)?;
                            record.add(SAMPLE, &sizes, &reference.key);
                        }
                        Err(_) => broken += 1,
                    }
                    Ok(())
                })?;
            } else {
                let path = shard.source.path();
                let bytes = match &shard.source {
                    ByteSource::File(path) => size(path)?,
                    ByteSource::Object(object) => object.scan().length(),
                };
                let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
                record.add(SHARD, &bytes.to_string(), &name);
            }
        }
        if broken > 0 {
            record.add(BROKEN, &broken.to_string(), "samples");
        }
        Ok(record)
    }

    fn add(&mut self, kind: &str, sizes: &str, name: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{kind} {sizes} {}", name.escape_debug());
    }

    /// What identifies the record.
    pub fn fingerprint(&self) -> DataFingerprint {
        let entries = self.0.lines().filter(|line| line.starts_with(SAMPLE) || line.starts_with(SHARD)).count();
        DataFingerprint { sha256: sha256_of(self.0.as_bytes()), entries: entries as u64 }
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        write_atomically(file, |out| out.write_all(self.0.as_bytes()))
    }

    /// Reads a record, if there is one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(file: &Path) -> Result<Option<Self>> {
        if !is_file(file)? {
            return Ok(None);
        }
        DATA_RECORD.read_text(file).map(|text| Some(Self(text))).map_err(|e| Error::file(file, e))
    }

    /// What differs between this record and that of `now`, a line for each kind of difference.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut counts: HashMap<&str, i64> = HashMap::new();
        self.0.lines().for_each(|line| *counts.entry(line).or_default() -= 1);
        now.0.lines().for_each(|line| *counts.entry(line).or_default() += 1);
        let mut kinds: BTreeMap<&str, [BTreeSet<&str>; 2]> = BTreeMap::new();
        for (line, count) in counts.into_iter().filter(|(_, count)| *count != 0) {
            let mut parts = line.splitn(3, ' ');
            let (kind, name) = (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
            kinds.entry(kind).or_default()[usize::from(count > 0)].insert(name);
        }
        let mut found = vec![];
        for (kind, [gone, new]) in &kinds {
            let what = match *kind {
                SAMPLE => "picture",
                SHARD => "tar file",
                FILE => {
                    found.extend(gone.union(new).map(|key| format!("{key}: another content, or none")));
                    continue;
                }
                _ => {
                    found.push("data.source: another number of samples that cannot be read".into());
                    continue;
                }
            };
            let changes = [
                ("added", new - gone),
                ("removed", gone - new),
                ("changed", gone.intersection(new).copied().collect()),
            ];
            let changes = changes.iter().filter(|(_, names)| !names.is_empty());
            found.extend(changes.map(|(change, names)| format!("data.source: {}", listed(what, change, names))));
        }
        if found.is_empty() && self != now {
            found.push("data.source: the same pictures in another order".into());
        }
        found
    }
}

/// `3 pictures added since: a, b, c`.
fn listed(what: &str, change: &str, names: &BTreeSet<&str>) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    let first: Vec<&str> = names.iter().take(NAMED).copied().collect();
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{} {what}{plural} {change} since: {}{more}", names.len(), first.join(", "))
}

/// The sizes of a sample's files: image, caption, then annotation, label map or masks.
fn sizes(reference: &SampleReference, labels: Option<&Path>) -> Result<String> {
    // Members of tar files are not listed one by one.
    let of = |member: &Member| if let Member::File(path) = member { size(path) } else { Ok(0) };
    let caption = reference.caption.as_ref().map_or(Ok(0), of)?;
    let mut sizes = vec![of(&reference.image)?, caption];
    for member in reference.annotation.iter().chain(&reference.masks) {
        sizes.push(of(member)?);
    }
    if let Some(folder) = labels {
        for path in &reference.labels {
            sizes.push(size(&folder.join(path))?);
        }
    }
    Ok(sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(","))
}

/// Bytes of a file; 0 where there is none.
fn size(path: &Path) -> Result<u64> {
    find(path).map(|found| found.map_or(0, |about| about.len())).map_err(|e| Error::file(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lines: &[&str]) -> DataRecord {
        DataRecord(lines.iter().map(|line| format!("{line}\n")).collect())
    }

    #[test]
    fn differences_are_counted_and_named() {
        let was =
            record(&["sample 1,0,0 a", "sample 2,0,0 b b", "sample 3,0,0 c", "file aa data.captions", "shard 9 x.tar"]);
        assert!(was.differences(&was).is_empty());
        let now =
            record(&["sample 1,0,0 a", "sample 2,0,7 b b", "sample 5,0,0 d", "file ab data.captions", "shard 9 x.tar"]);
        let expected = [
            "data.captions: another content, or none",
            "data.source: 1 picture added since: d",
            "data.source: 1 picture removed since: c",
            "data.source: 1 picture changed since: b b",
        ];
        assert_eq!(was.differences(&now), expected);
        let turned = record(&["shard 9 y.tar", "shard 9 x.tar"]);
        let shards = record(&["shard 9 x.tar", "shard 9 y.tar"]);
        assert_eq!(shards.differences(&turned), ["data.source: the same pictures in another order"]);
        let many = record(&[
            "shard 9 x.tar",
            "shard 9 y.tar",
            "shard 1 1.tar",
            "shard 1 2.tar",
            "shard 1 3.tar",
            "shard 1 4.tar",
        ]);
        assert_eq!(shards.differences(&many), ["data.source: 4 tar files added since: 1.tar, 2.tar, 3.tar, …"]);
        // Two sources may have a name in common.
        let twice = record(&["sample 1,0,0 a", "sample 1,0,0 a"]);
        assert_eq!(twice.differences(&record(&["sample 1,0,0 a"])), ["data.source: 1 picture removed since: a"]);
    }
}
