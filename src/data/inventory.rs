//! The inventory: every file of the sources is accounted for before the first step.
//!
//! Folders are listed once and one at a time, so memory grows with the largest folder: 16 bytes and the name for each of
//! its files. Tar shards are not listed beforehand; they are counted as they are read.
use super::data_set::DataSet;
use super::sample_reader::SampleReader;
use super::sources::findings::{EXAMPLES, Finding, Findings, counted, thousands};
use super::sources::folder::{Paired, PictureFolder, for_each_mask};
use super::sources::pairing::Pairing;
use super::sources::unusable::unless_fatal;
use super::sources::walk::FoundSource;
use crate::config::{Allowed, Choice, DataFormat};
use crate::system::limits::CAPTION;
use crate::system::whole_file::write_atomically;
use crate::{Error, Result};
use serde::Serialize;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

/// What the sources of a run hold.
#[derive(Clone, Debug, Serialize)]
pub struct Inventory {
    sources: Vec<SourceCounts>,
}

/// What one source holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceCounts {
    /// The path or pattern.
    pub source: String,
    /// `data.format`.
    pub format: &'static str,
    /// How often its samples come in an epoch.
    pub repeats: f64,
    /// Tar files, whose members are not counted here.
    pub shards: u64,
    /// Photographs in folders, those included that lack something.
    pub photographs: u64,
    /// What belongs to them: files of masks, label maps or annotations, or annotations of one JSON.
    pub masks: u64,
    /// What `masks` are called, one and several.
    #[serde(skip)]
    masks_are: [&'static str; 2],
    /// Captions that belong to them.
    pub captions: u64,
    /// Everything else.
    findings: Findings,
}

impl Inventory {
    /// Lists the sources of a data set.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn of(data: &DataSet) -> Result<Self> {
        let mut sources = Vec::new();
        for (index, reader) in data.readers.iter().enumerate() {
            let group = data.sources.iter().filter(|source| source.settings == index);
            let counter = Counter { pairing: Pairing::of(&reader.config), reader };
            let mut counted = group.map(|source| counter.count(source)).collect::<Result<Vec<_>>>()?;
            let is_all_counted = counted.iter().all(|source| source.shards == 0);
            if let (Some(last), true) = (counted.last_mut(), is_all_counted) {
                if let Some(captions) = &reader.captions {
                    last.findings.add_many(Finding::CaptionOfOthers, captions.left(EXAMPLES)?);
                }
                if let Some(annotations) = &reader.masks.annotations {
                    last.findings.add_many(Finding::AnnotationOfOthers, annotations.left(EXAMPLES)?);
                }
            }
            sources.extend(counted);
        }
        Ok(Self { sources })
    }

    /// Lists the sources before they are read, and says what they hold.
    ///
    /// # Errors
    /// Those of [`of`](Self::of) and [`check`](Self::check).
    pub fn of_run(data: &DataSet) -> Result<Self> {
        let inventory = Self::of(data)?;
        tracing::info!("data\n{inventory}");
        inventory.check(&data.config.allow)?;
        Ok(inventory)
    }

    /// # Errors
    /// `Error::Usage` with a line for everything that `allow` does not accept; there is no photograph at all.
    pub fn check(&self, allow: &[Allowed]) -> Result<()> {
        if self.sources.iter().all(SourceCounts::is_empty) {
            let names: Vec<&str> = self.sources.iter().map(|source| source.source.as_str()).collect();
            let problem = "no usable sample: there is no photograph that can be read";
            return Err(Error::Failed(format!("{}: {problem}", names.join(", "))));
        }
        let problems: Vec<String> = self.sources.iter().flat_map(|source| source.problems(allow)).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Usage(problems.join("\n"))) }
    }

    /// Writes it as JSON, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|problem| Error::file(file, problem))?;
        write_atomically(file, |out| out.write_all(text.as_bytes()))
    }
}

struct Counter<'a> {
    pairing: Pairing,
    /// The files of captions and annotations.
    reader: &'a SampleReader,
}

impl Counter<'_> {
    fn count(&self, source: &FoundSource) -> Result<SourceCounts> {
        let mut counts = SourceCounts {
            source: source.name.clone(),
            format: self.pairing.format.name(),
            repeats: source.repeats,
            masks_are: match self.pairing.format {
                DataFormat::Coco if self.pairing.panoptic => ["annotation", "annotations"],
                DataFormat::Coco => ["label map", "label maps"],
                DataFormat::Sa1b => ["annotation file", "annotation files"],
                DataFormat::Folder => ["mask", "masks"],
            },
            findings: source.findings.clone(),
            ..SourceCounts::default()
        };
        let mut with_masks = 0;
        for shard in &source.shards {
            if !shard.is_folder {
                counts.shards += 1;
                continue;
            }
            let failed = |problem| Error::file(shard.source.path(), problem);
            let mut findings = Findings::default();
            let folder = shard.folder(&mut findings).map_err(failed)?;
            let flow = folder.pair(&mut findings, |paired, findings| {
                with_masks += u64::from(!paired.masks.is_empty());
                let counted = self.count_sample(&folder, shard.source.path(), &paired, &mut counts, findings);
                counted.map_or_else(ControlFlow::Break, ControlFlow::Continue)
            });
            flow.break_value().map_or(Ok(()), Err)?;
            counts.findings.merge(findings);
        }
        if self.pairing.format == DataFormat::Folder && with_masks > 0 {
            counts.findings.add_many(Finding::MaskMissing, (counts.photographs - with_masks, Vec::new()));
        }
        self.count_lone_masks(source, &mut counts.findings)?;
        Ok(counts)
    }

    fn count_sample(
        &self,
        folder: &PictureFolder,
        path: &Path,
        paired: &Paired,
        counts: &mut SourceCounts,
        findings: &mut Findings,
    ) -> Result<()> {
        let shown = format!("{}{}", folder.below, paired.picture);
        counts.photographs += 1;
        counts.masks += paired.masks.len() as u64 + u64::from(paired.json.is_some());
        counts.captions += u64::from(paired.text.is_some());
        if let Some(text) = paired.text
            && is_blank(&path.join(text))?
        {
            findings.add(Finding::BlankCaption, &format!("{}{text}", folder.below));
        }
        let has_annotation = paired.json.is_some() || !paired.masks.is_empty();
        if let Some(lacked) = self.pairing.lacks(paired.text.is_some(), has_annotation) {
            findings.add(lacked, &shown);
            return Ok(());
        }
        let key = match self.pairing.format {
            DataFormat::Sa1b => format!("{}{}", folder.below, paired.stem),
            _ => path.join(paired.stem).to_string_lossy().into_owned(),
        };
        let captions = self.reader.captions.as_ref();
        match captions.map(|captions| unless_fatal(captions.take(&key))).transpose()? {
            Some(Ok(Some(caption))) => {
                counts.captions += 1;
                if caption.is_empty() {
                    findings.add(Finding::BlankCaption, &shown);
                }
            }
            Some(Ok(None)) => findings.add(Finding::CaptionMissing, &shown),
            Some(Err(_)) => findings.add(Finding::CaptionUnclear, &shown),
            None => {}
        }
        let annotations = self.reader.masks.annotations.as_ref();
        match annotations.map(|annotations| unless_fatal(annotations.count(&key))).transpose()? {
            Some(Ok(Some(0))) => findings.add(Finding::MaskMissing, &shown),
            Some(Ok(Some(count))) => counts.masks += count as u64,
            Some(Ok(None)) => findings.add(Finding::NotAnnotated, &shown),
            Some(Err(_)) => findings.add(Finding::AnnotationUnclear, &shown),
            None => {}
        }
        Ok(())
    }

    /// Counts the masks, in folders of their own, of pictures that are not there.
    fn count_lone_masks(&self, source: &FoundSource, findings: &mut Findings) -> Result<()> {
        for masks in &source.mask_folders {
            let failed = |problem| Error::file(masks, problem);
            let served = source.shards.iter().filter(|shard| shard.mask_folders.contains(masks));
            let folders = served.map(|shard| shard.folder(&mut Findings::default()));
            let folders = folders.collect::<std::io::Result<Vec<PictureFolder>>>().map_err(failed)?;
            let mut alone = Findings::default();
            for_each_mask(masks, findings, |stem, name| {
                if folders.iter().all(|folder| folder.picture_of(stem).is_none()) {
                    alone.add(Finding::MaskAlone, &masks.join(name).display().to_string());
                }
            })
            .map_err(failed)?;
            findings.merge(alone);
        }
        Ok(())
    }
}

/// Whether a caption's file holds nothing but white space.
fn is_blank(file: &Path) -> Result<bool> {
    /// Files longer than this are not looked into.
    const SHORT: u64 = 64;
    let failed = |problem| Error::file(file, problem);
    if std::fs::metadata(file).map_err(failed)?.len() > SHORT {
        return Ok(false);
    }
    let text = CAPTION.read(file).map_err(failed)?;
    Ok(String::from_utf8_lossy(&text).trim_start_matches('\u{feff}').trim().is_empty())
}

impl SourceCounts {
    fn is_empty(&self) -> bool {
        self.shards == 0 && self.photographs == 0
    }

    fn problems(&self, allow: &[Allowed]) -> Vec<String> {
        let source = &self.source;
        let mut problems: Vec<String> =
            self.findings.iter().filter_map(|(finding, count)| finding.problem(count, source, allow)).collect();
        let blank = self.findings.count(Finding::BlankCaption);
        if blank > 0 && blank == self.captions && !allow.contains(&Allowed::CaptionsEmpty) {
            let accept = "data.allow = [\"captions_empty\"] trains without words";
            problems.push(format!("{source}: all of its {} captions are empty; {accept}", thousands(blank)));
        }
        if self.is_empty() {
            problems.push(format!("{source}: there is no photograph that can be read"));
        }
        problems
    }

    /// A line of totals and a line for each kind of finding.
    fn lines(&self) -> Vec<String> {
        let mut totals = Vec::new();
        if self.shards > 0 {
            let shards = counted(self.shards, ["tar shard", "tar shards"]);
            totals.push(format!("{shards}, counted as they are read"));
        }
        if self.photographs > 0 || self.shards == 0 {
            totals.push(counted(self.photographs, ["photograph", "photographs"]));
            totals.push(counted(self.masks, self.masks_are));
            if self.format != DataFormat::Coco.name() {
                totals.push(counted(self.captions, ["caption", "captions"]));
            }
        }
        if self.repeats != 1.0 {
            totals.push(format!("{} times an epoch", self.repeats));
        }
        let mut lines = vec![totals.join(", ")];
        let (mut unread, mut unread_parts) = (0, Vec::new());
        for (finding, count) in self.findings.iter() {
            if matches!(finding, Finding::UnreadPicture | Finding::Archive | Finding::Other) {
                unread += count.count;
                let kinds =
                    count.extensions.iter().map(|(extension, count)| format!("{} {extension}", thousands(*count)));
                let help = finding.description().help;
                let reason = if help.is_empty() { String::new() } else { format!(" ({help})") };
                unread_parts.push(kinds.collect::<Vec<_>>().join(", ") + &reason);
            } else {
                lines.push(finding.shown(count));
            }
        }
        if unread > 0 {
            lines.push(format!("{} not read: {}", counted(unread, ["file", "files"]), unread_parts.join(", ")));
        }
        lines
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.sources.iter().map(|source| source.source.chars().count()).max().unwrap_or(0) + 2;
        let lines = self.sources.iter().flat_map(|source| {
            let names = std::iter::once(source.source.as_str()).chain(std::iter::repeat(""));
            names.zip(source.lines()).map(|(name, line)| format!("{name:width$}{line}"))
        });
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}
