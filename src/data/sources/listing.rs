//! All samples of a data set, each once, in source order.
use super::findings::Findings;
use super::shards::{self, Listed, listed};
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

    /// The settings that samples name by [`SampleReference::settings`](super::shards::SampleReference).
    pub fn settings(&self) -> &[DataConfig] {
        &self.sources.settings
    }

    /// Calls `visit` with chunks of at most `count` samples, broken ones included, until it fails.
    pub fn for_each_chunk(&self, count: usize, mut visit: impl FnMut(Vec<Listed>) -> Result<()>) -> Result<()> {
        let mut outcome = Ok(());
        let mut chunk = Vec::with_capacity(count);
        for shard in self.sources.shards() {
            let flow = shard.scan(&mut Findings::default(), &mut |item| {
                match listed(item) {
                    Ok(item) => chunk.push(item),
                    Err(error) => {
                        outcome = Err(error);
                        return ControlFlow::Break(());
                    }
                }
                if chunk.len() < count {
                    return ControlFlow::Continue(());
                }
                outcome = visit(std::mem::take(&mut chunk));
                if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            if flow.is_break() {
                break;
            }
        }
        outcome?;
        if chunk.is_empty() { Ok(()) } else { visit(chunk) }
    }
}
