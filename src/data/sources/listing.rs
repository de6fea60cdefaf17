//! All samples of a data set, each once, in source order.
use super::findings::Findings;
use super::shards::{self, Listed, SampleShard, listed};
use super::walk::Sources;
use crate::config::DataConfig;
use crate::system::error::Result;
use std::ops::ControlFlow;

/// The samples of all sources; listing reads only headers and names.
pub struct Listing {
    sources: Sources,
}

impl Listing {
    /// # Errors
    /// A source matches nothing, or there are no captions.
    pub fn open(config: &DataConfig) -> Result<Self> {
        let sources = Sources::open(config)?;
        shards::check_captions(sources.shards())?;
        Ok(Self { sources })
    }

    /// The settings that samples name by `SampleReference::settings`.
    pub fn settings(&self) -> &[DataConfig] {
        &self.sources.settings
    }

    /// The tar files and folders, in the order of the sources.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &SampleShard> {
        self.sources.shards()
    }

    /// Calls `visit` with each sample of `shard`, broken ones included, until it fails.
    pub(crate) fn for_each_of(&self, shard: &SampleShard, mut visit: impl FnMut(Listed) -> Result<()>) -> Result<()> {
        let mut outcome = Ok(());
        let _ = shard.scan(&mut Findings::default(), &mut |item| {
            outcome = listed(item).and_then(&mut visit);
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        outcome
    }

    /// Calls `visit` with chunks of at most `count` samples, broken ones included, until it fails.
    pub fn for_each_chunk(&self, count: usize, mut visit: impl FnMut(Vec<Listed>) -> Result<()>) -> Result<()> {
        let mut chunk = Vec::with_capacity(count);
        for shard in self.sources.shards() {
            self.for_each_of(shard, |item| {
                chunk.push(item);
                if chunk.len() < count { Ok(()) } else { visit(std::mem::take(&mut chunk)) }
            })?;
        }
        if chunk.is_empty() { Ok(()) } else { visit(chunk) }
    }
}
