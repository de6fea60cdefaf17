//! Which process decodes which samples: about those that it trains on.
use crate::distributed::Collective;
use crate::system::error::Result;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How the samples of a loader are shared by processes.
#[derive(Clone)]
pub struct Share {
    pub(super) rank: usize,
    pub(super) size: usize,
    /// Samples of a process's batch.
    pub(super) batch: usize,
    /// Entries that any process plans ahead at most.
    ahead: u64,
    /// Samples that had come to nothing, by the entry of the stream from which on tasks are given away by that number.
    lost: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl Share {
    /// A share of `batch` samples at a time, for loaders that plan `prefetch` samples ahead for each process.
    ///
    /// # Errors
    /// A process has failed.
    pub fn new(collective: &dyn Collective, batch: usize, prefetch: usize) -> Result<Self> {
        let ahead = prefetch * collective.size();
        let ahead = gather_number(collective, ahead as u64)?.into_iter().max().unwrap_or_default();
        Ok(Self { rank: collective.rank(), size: collective.size(), batch, ahead, lost: Arc::default() })
    }

    /// Whose task number `task` is, entry `number` of the stream.
    fn owner(&self, task: u64, number: u64) -> usize {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = lost.range(..=number).next_back().map_or(0, |(_, lost)| *lost);
        (task.saturating_sub(lost) / self.batch as u64 % self.size as u64) as usize
    }

    /// [`Self::owner`], where that is another process.
    pub(super) fn other_owner(&self, task: u64, number: u64) -> Option<usize> {
        Some(self.owner(task, number)).filter(|owner| *owner != self.rank)
    }

    /// From the first entry on that no process has planned yet, when all have taken `taken`, so many samples are `lost`.
    pub(super) fn set_lost(&self, taken: u64, lost: u64) {
        let mut all = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if all.values().next_back().copied().unwrap_or(0) != lost {
            all.insert(taken + self.ahead, lost);
        }
        // Of those that nobody asks for any more, the last one holds on.
        while all.keys().nth(1).is_some_and(|second| *second <= taken) {
            all.pop_first();
        }
    }
}

/// A number of each process, in rank order.
pub(super) fn gather_number(collective: &dyn Collective, number: u64) -> Result<Vec<u64>> {
    let all = collective.gather(&Tensor::new(&[number as i64], &Device::Cpu)?)?;
    all.iter().map(|number| Ok(number.to_vec1::<i64>()?[0] as u64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::SingleProcess;

    #[test]
    fn tasks_follow_the_samples_that_are_left() {
        let share = Share { rank: 0, size: 3, ahead: 10, ..Share::new(&SingleProcess, 2, 1).expect("share") };
        let owners = |from: u64| (from..from + 8).map(|task| share.owner(task, task)).collect::<Vec<_>>();
        assert_eq!(owners(0), [0, 0, 1, 1, 2, 2, 0, 0]);
        // One sample was lost among the first seven entries; it counts from entry 17 on.
        share.set_lost(7, 1);
        assert_eq!(owners(12), [0, 0, 1, 1, 2, 2, 2, 0]);
        share.set_lost(20, 1);
        share.set_lost(21, 3);
        assert_eq!(share.owner(31, 31), 28 / 2 % 3);
    }
}
