//! Batches of several processes: each decodes about those samples that it trains on, and all agree on who that is.
//!
//! All processes list the same samples in the same order, which reads no more than the headers of shards. Which of them are
//! broken is known only when they are decoded, and moves all that follow. So tasks are given to processes by how many
//! samples have come to nothing so far; for every round of batches the processes tell each other what came of theirs; and
//! who lacks a sample after that, since others were broken shortly before it, decodes it itself.
use super::loader::{Batch, Loader};
use super::order::Cursor;
use super::plan::{DecodeTask, Decoded, Position};
use super::sources::shards::Broken;
use super::sources::unusable::Unusable;
use super::{Sample, loader};
use crate::distributed::Collective;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How the samples of a loader are shared by processes.
#[derive(Clone)]
pub struct Share {
    rank: usize,
    size: usize,
    /// Samples of a process's batch.
    batch: usize,
    /// Entries that any process plans ahead at most.
    ahead: u64,
    /// Samples that had come to nothing, by the entry of the stream from which on tasks are given away by that number.
    lost: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl Share {
    /// A share of `batch` samples at a time, for loaders of `workers` threads.
    ///
    /// # Errors
    /// A process has failed.
    pub fn new(collective: &dyn Collective, batch: usize, workers: usize) -> Result<Self> {
        let ahead = loader::prefetch(workers.max(1)) * collective.size();
        let all = collective.gather(&Tensor::new(&[ahead as i64], &Device::Cpu)?)?;
        let all = all.iter().map(|ahead| Ok(ahead.to_vec1::<i64>()?[0] as u64)).collect::<Result<Vec<_>>>()?;
        let ahead = all.into_iter().max().unwrap_or_default();
        Ok(Self { rank: collective.rank(), size: collective.size(), batch, ahead, lost: Arc::default() })
    }

    /// How many processes share the samples.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whose task number `task` is, entry `number` of the stream.
    pub(super) fn owner(&self, task: u64, number: u64) -> usize {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = lost.range(..=number).next_back().map_or(0, |(_, lost)| *lost);
        (task.saturating_sub(lost) / self.batch as u64 % self.size as u64) as usize
    }

    pub(super) fn is_own(&self, owner: usize) -> bool {
        owner == self.rank
    }

    /// From the first entry on that no process has planned yet, when all have taken `taken`, so many samples are `lost`.
    fn set_lost(&self, taken: u64, lost: u64) {
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

/// The batches of all processes, as one of them has them.
pub struct Round {
    /// This process's samples.
    pub samples: Vec<Sample>,
    /// The first samples of all, as many as were asked for.
    pub first: Vec<Sample>,
    /// Epochs of the first samples of all processes' batches.
    pub epochs: Vec<u64>,
    /// Resumes at the sample after the round.
    pub cursor: Cursor,
    /// How long this process has waited for its own samples.
    pub waited: Duration,
}

impl From<Batch> for Round {
    /// The round of one process.
    fn from(Batch { samples, epoch, cursor, waited, .. }: Batch) -> Self {
        Self { samples, first: vec![], epochs: vec![epoch], cursor, waited }
    }
}

// What came of a task.
const LEFT_OUT: u8 = 0;
const WITHOUT_MASK: u8 = 1;
const WITH_MASK: u8 = 2;
const BROKEN: u8 = 3;

/// A sample of the round.
enum Found {
    Here(Box<Sample>),
    There(Box<DecodeTask>),
}

impl Loader {
    /// The next batch of every process; this one has its own, and the `first` samples of all. All processes call it
    /// together, of loaders with a [`Share`].
    ///
    /// # Errors
    /// Those of [`Loader::next_batch`]; another process has failed; this one cannot read what another one could.
    pub fn next_round(&mut self, collective: &dyn Collective, share: &Share, first: usize) -> Result<Round> {
        let wanted = share.batch * share.size;
        let (mut found, mut epochs) = (vec![], vec![]);
        let mut waited = Duration::ZERO;
        while found.len() < wanted {
            let entries = self.next_entries(wanted - found.len(), &mut waited)?;
            let mut fates = agree(&entries, collective, share)?;
            for entry in entries {
                let position = position(&entry);
                let sample = self.account(entry, &mut fates)?;
                if let (Some(sample), Some(position)) = (sample, position) {
                    if found.len().is_multiple_of(share.batch) {
                        epochs.push(position.epoch);
                    }
                    found.push(sample);
                }
            }
        }
        self.lost += std::mem::take(&mut self.lost_now);
        share.set_lost(self.taken(), self.lost);
        let own = share.rank * share.batch..(share.rank + 1) * share.batch;
        let (mut samples, mut firsts) = (vec![], vec![]);
        for (place, found) in found.into_iter().enumerate() {
            if !own.contains(&place) && place >= first {
                continue;
            }
            let sample = match found {
                Found::Here(sample) => *sample,
                Found::There(task) => self.decode_here(&task)?,
            };
            if place < first {
                firsts.push(sample.clone());
            }
            if own.contains(&place) {
                samples.push(sample);
            }
        }
        Ok(Round { samples, first: firsts, epochs, cursor: self.cursor().clone(), waited })
    }

    /// The next entries of the stream, with `tasks` among them, or up to the end of the epoch: what is known of it may end
    /// the run.
    fn next_entries(&mut self, tasks: usize, waited: &mut Duration) -> Result<Vec<Decoded>> {
        let (mut entries, mut count) = (vec![], 0);
        while count < tasks {
            let entry = self.next_decoded(waited)?;
            count += usize::from(is_task(&entry));
            let is_end = matches!(entry, Decoded::EpochEnd);
            match entry {
                Decoded::Failed(error) => return Err(error),
                entry => entries.push(entry),
            }
            if is_end {
                break;
            }
        }
        Ok(entries)
    }

    /// Counts an entry as [`Loader::next_batch`] does; returns it where it is a sample.
    fn account(&mut self, entry: Decoded, fates: &mut Fates) -> Result<Option<Found>> {
        match entry {
            Decoded::Sample(decoded, position) => {
                self.advance(position);
                self.count(&decoded.sample.key, decoded.fates.has_mask());
                return Ok(Some(Found::Here(Box::new(decoded.sample))));
            }
            Decoded::Foreign(task, owner) => {
                self.advance(task.after);
                match fates.next(owner) {
                    LEFT_OUT => self.lost_now += 1,
                    BROKEN => {
                        self.lost_now += 1;
                        self.count_broken(&fates.broken(owner, &task))?;
                    }
                    fate => {
                        self.count(&task.reference.key, fate == WITH_MASK);
                        return Ok(Some(Found::There(task)));
                    }
                }
            }
            Decoded::Broken(broken, position) => {
                self.advance(position);
                self.lost_now += 1;
                self.count_broken(&broken)?;
            }
            Decoded::Unlisted(broken, position) => {
                self.advance(position);
                self.count_broken(&broken)?;
            }
            Decoded::LeftOut(position) => {
                self.advance(position);
                self.lost_now += 1;
            }
            Decoded::Counted(findings, listed) => self.count_findings(*findings, listed)?,
            Decoded::Failed(error) => return Err(error),
            Decoded::EpochEnd => self.end_epoch()?,
        }
        Ok(None)
    }

    /// Decodes what another process has decoded, and this one trains on.
    fn decode_here(&self, task: &DecodeTask) -> Result<Sample> {
        let name = task.reference.name();
        let elsewhere = |reason: &str| {
            Err(Error::Failed(format!("{name}: another process can read it, and this one not: {reason}")))
        };
        match guarded(|| self.decoders[task.reference.settings].decode(&task.reference, task.epoch)) {
            Ok(Some(decoded)) => Ok(decoded.sample),
            Ok(None) => elsewhere("it is left out"),
            Err(Unusable::Broken(reason)) => elsewhere(&reason.to_string()),
            Err(Unusable::Fatal(error)) => Err(error),
        }
    }
}

fn is_task(entry: &Decoded) -> bool {
    matches!(entry, Decoded::Sample(..) | Decoded::Broken(..) | Decoded::LeftOut(_) | Decoded::Foreign(..))
}

/// The position after an entry, where it has one.
fn position(entry: &Decoded) -> Option<Position> {
    match entry {
        Decoded::Sample(_, position) | Decoded::Broken(_, position) => Some(*position),
        Decoded::Unlisted(_, position) | Decoded::LeftOut(position) => Some(*position),
        Decoded::Foreign(task, _) => Some(task.after),
        Decoded::Counted(..) | Decoded::Failed(_) | Decoded::EpochEnd => None,
    }
}

/// What came of the tasks of each process, in their order.
struct Fates {
    flags: Vec<std::vec::IntoIter<u8>>,
    broken: Vec<std::vec::IntoIter<(String, String)>>,
}

impl Fates {
    fn next(&mut self, owner: usize) -> u8 {
        self.flags.get_mut(owner).and_then(Iterator::next).unwrap_or(LEFT_OUT)
    }

    fn broken(&mut self, owner: usize, task: &DecodeTask) -> Broken {
        let told = self.broken.get_mut(owner).and_then(Iterator::next);
        let (name, reason) = told.unwrap_or_else(|| (task.reference.name(), "it cannot be read".into()));
        Broken { name, reason }
    }
}

/// Makes sure that all processes are at the same entries: a shard that one of them alone cannot list moves all that follows.
///
/// # Errors
/// They are not: says which process has others than rank 0.
fn check_alike(entries: &[Decoded], collective: &dyn Collective) -> Result<()> {
    let mut hasher = DefaultHasher::new();
    entries.iter().filter_map(position).for_each(|position| position.hash(&mut hasher));
    (entries.len(), entries.last().is_some_and(|last| matches!(last, Decoded::EpochEnd))).hash(&mut hasher);
    let hashes = collective.gather(&Tensor::new(&[hasher.finish() as i64], &Device::Cpu)?)?;
    let hashes = hashes.iter().map(|hash| Ok(hash.to_vec1::<i64>()?)).collect::<Result<Vec<_>>>()?;
    match hashes.iter().position(|hash| *hash != hashes[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Failed(format!(
            "rank {rank} lists other samples than rank 0: a file of the data was changed or taken away, or the processes do \
             not see the same files"
        ))),
    }
}

/// Tells the other processes what came of this one's tasks, and hears of theirs.
fn agree(entries: &[Decoded], collective: &dyn Collective, share: &Share) -> Result<Fates> {
    check_alike(entries, collective)?;
    let mut counts = vec![0; share.size];
    let (mut flags, mut broken) = (vec![], vec![]);
    for entry in entries {
        flags.push(match entry {
            Decoded::Foreign(_, owner) => {
                counts[*owner] += 1;
                continue;
            }
            Decoded::Sample(decoded, _) if decoded.fates.has_mask() => WITH_MASK,
            Decoded::Sample(..) => WITHOUT_MASK,
            Decoded::LeftOut(_) => LEFT_OUT,
            Decoded::Broken(Broken { name, reason }, _) => {
                broken.push((name.clone(), reason.clone()));
                BROKEN
            }
            _ => continue,
        });
    }
    counts[share.rank] = flags.len();
    let Some(most) = counts.iter().copied().max().filter(|most| *most > 0) else {
        return Ok(Fates { flags: vec![], broken: vec![] });
    };
    flags.resize(most, LEFT_OUT);
    let all = collective.gather(&Tensor::from_vec(flags, most, &Device::Cpu)?)?;
    let all = all.iter().zip(counts).map(|(flags, count)| {
        let mut flags = flags.to_vec1::<u8>()?;
        flags.truncate(count);
        Ok(flags)
    });
    let all = all.collect::<Result<Vec<_>>>()?;
    let mut texts = vec![];
    if all.iter().flatten().any(|flag| *flag == BROKEN) {
        let json = |e: serde_json::Error| Error::Failed(format!("what is broken cannot be told: {e}"));
        let told = collective.gather_bytes(&serde_json::to_vec(&broken).map_err(json)?)?;
        let told = told.iter().map(|told| serde_json::from_slice::<Vec<(String, String)>>(told).map_err(json));
        texts = told.collect::<Result<Vec<_>>>()?;
    }
    Ok(Fates {
        flags: all.into_iter().map(Vec::into_iter).collect(),
        broken: texts.into_iter().map(Vec::into_iter).collect(),
    })
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
