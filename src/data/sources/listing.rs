//! All samples of a data set, each once and in the order of its source.
use super::shards::{self, Broken, Pairing, Reference, Shard};
use super::unusable::Unusable;
use crate::config::DataConfig;
use crate::system::error::Result;
use std::ops::ControlFlow;

/// A sample, or what should be one.
pub type Listed = std::result::Result<Reference, Broken>;

/// The samples that `data` names; listing them reads headers and names only.
pub struct Listing {
    shards: Vec<Shard>,
    pairing: Pairing,
}

impl Listing {
    /// # Errors
    /// A source matches nothing, or there are no captions.
    pub fn open(config: &DataConfig) -> Result<Self> {
        let (shards, pairing) = (shards::find(config)?, Pairing::of(config));
        shards::check_captions(&shards, pairing)?;
        Ok(Self { shards, pairing })
    }

    /// Calls `visit` with all samples, and all that should be one, at most `count` at a time, until it fails.
    pub fn for_each_chunk(&self, count: usize, mut visit: impl FnMut(Vec<Listed>) -> Result<()>) -> Result<()> {
        let mut outcome = Ok(());
        let mut chunk = Vec::with_capacity(count);
        for shard in &self.shards {
            let flow = shard.scan(self.pairing, &mut |item| {
                chunk.push(match item {
                    Ok(reference) => Ok(reference),
                    Err(Unusable::Broken(broken)) => Err(broken),
                    Err(Unusable::Fatal(error)) => {
                        outcome = Err(error);
                        return ControlFlow::Break(());
                    }
                });
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
