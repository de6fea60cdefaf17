//! The data set of a run, opened once for all that reads it.
use super::mask_form;
use super::sample_reader::SampleReader;
use super::sources::findings::Findings;
use super::sources::shards::{Listed, NO_CAPTION, SampleShard};
use super::sources::unusable::unless_fatal;
use super::sources::walk::{FoundSource, Sources};
use crate::config::{DataConfig, DataFormat};
use crate::system::error::{Error, Result};
use std::ops::ControlFlow;
use std::sync::Arc;

/// All sources with their captions, classes and annotations. Memory: what the captions and annotations take.
pub struct DataSet {
    /// The settings that it was opened with.
    pub(crate) config: DataConfig,
    pub(crate) sources: Vec<FoundSource>,
    /// One for each group of sources with settings of their own; what samples name by `SampleReference::settings`.
    pub(crate) readers: Vec<Arc<SampleReader>>,
}

impl DataSet {
    /// Finds the sources of `config`, and reads the files of captions, classes and annotations that it names.
    ///
    /// # Errors
    /// A source matches nothing; a file cannot be read.
    pub fn open(config: &DataConfig) -> Result<Self> {
        let Sources { settings, found: sources } = Sources::open(config)?;
        let readers = settings.into_iter().enumerate().map(|(number, settings)| {
            let own = sources.iter().flat_map(|source| &source.shards).filter(|shard| shard.settings == number);
            let is_binary = mask_form::are_binary(&settings, own)?;
            SampleReader::open(settings, is_binary).map(Arc::new)
        });
        let readers = readers.collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), sources, readers })
    }

    /// The tar files and folders, in the order of the sources.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &SampleShard> {
        self.sources.iter().flat_map(|source| &source.shards)
    }

    /// sa1b without captions file: checks that some image of the first shard has a `.txt`.
    ///
    /// # Errors
    /// There are no captions where they are needed.
    pub(crate) fn check_captions(&self) -> Result<()> {
        let needs_text = |shard: &&SampleShard| shard.pairing.format == DataFormat::Sa1b && shard.pairing.text;
        let Some(shard) = self.shards().find(needs_text) else { return Ok(()) };
        let mut lacks_caption = false;
        // Samples without caption are yielded last, so a sound shard's scan stops at its first sample.
        let first = shard.scan(&mut Findings::default(), &mut |item| match unless_fatal(item) {
            Ok(Err(broken)) => {
                lacks_caption |= broken.reason == NO_CAPTION;
                ControlFlow::Continue(())
            }
            Ok(Ok(_)) => ControlFlow::Break(Ok(())),
            Err(error) => ControlFlow::Break(Err(error)),
        });
        if first.break_value().transpose()?.is_none() && lacks_caption {
            let (path, text) = (shard.source.path().display(), "there are no captions: data.captions is missing, and");
            return Err(Error::Usage(format!("{text} {path} holds no KEY.txt beside KEY.jpg and KEY.json")));
        }
        Ok(())
    }

    /// Calls `visit` with each sample of `shard`, broken ones included and those left out that the user accepts, until it
    /// fails.
    pub(crate) fn for_each_of(&self, shard: &SampleShard, mut visit: impl FnMut(Listed) -> Result<()>) -> Result<()> {
        let flow = shard.scan(&mut Findings::default(), &mut |item| {
            let outcome = unless_fatal(item).and_then(|item| match &item {
                Ok(reference) if self.readers[reference.settings].leaves_out(reference)? => Ok(()),
                _ => visit(item),
            });
            outcome.map_or_else(ControlFlow::Break, ControlFlow::Continue)
        });
        flow.break_value().map_or(Ok(()), Err)
    }

    /// Calls `visit` with chunks of at most `count` samples, each once and in source order, broken ones included, until it
    /// fails.
    pub(crate) fn for_each_chunk(&self, count: usize, mut visit: impl FnMut(Vec<Listed>) -> Result<()>) -> Result<()> {
        let mut chunk = Vec::with_capacity(count);
        for shard in self.shards() {
            self.for_each_of(shard, |item| {
                chunk.push(item);
                if chunk.len() < count { Ok(()) } else { visit(std::mem::take(&mut chunk)) }
            })?;
        }
        if chunk.is_empty() { Ok(()) } else { visit(chunk) }
    }
}
