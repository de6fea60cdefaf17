//! Batches of several processes: each decodes about those samples that it trains on, and all agree on who that is.
//!
//! All processes list the same samples in the same order, which reads no more than the headers of shards. Which of them are
//! broken is known only when they are decoded, and moves all that follow. So tasks are given to processes by how many
//! samples have come to nothing so far; for every round of batches the processes tell each other what came of theirs; and
//! who lacks a sample after that, since others were broken shortly before it, decodes it itself.
use super::loader::{Batch, Loader};
use super::order::Cursor;
use super::plan::{DecodeTask, Decoded};
use super::share::{Share, gather_number};
use super::sources::shards::Broken;
use super::sources::unusable::unless_fatal;
use super::{Sample, decode::DecodedSample};
use crate::distributed::{Collective, gather_values};
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use candle_core::{Device, Tensor};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

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
    Here(Box<DecodedSample>),
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
                if let Some(sample) = self.account_shared(entry, &mut fates)? {
                    if found.len().is_multiple_of(share.batch) {
                        epochs.push(self.cursor.epoch);
                    }
                    found.push(sample);
                }
            }
        }
        share.set_lost(self.next, self.lost);
        let own = share.rank * share.batch..(share.rank + 1) * share.batch;
        let (mut samples, mut firsts) = (vec![], vec![]);
        for (place, found) in found.into_iter().enumerate() {
            if !own.contains(&place) && place >= first {
                continue;
            }
            let sample = match found {
                Found::Here(decoded) => decoded.sample,
                Found::There(task) => self.decode_here(&task)?,
            };
            if place < first {
                firsts.push(sample.clone());
            }
            if own.contains(&place) {
                samples.push(sample);
            }
        }
        Ok(Round { samples, first: firsts, epochs, cursor: self.cursor.clone(), waited })
    }

    /// The next entries of the stream, with `tasks` among them, or up to the end of the epoch: what is known of it may end
    /// the run.
    fn next_entries(&mut self, tasks: usize, waited: &mut Duration) -> Result<Vec<Decoded>> {
        let (mut entries, mut count) = (vec![], 0);
        while count < tasks && !matches!(entries.last(), Some(Decoded::EpochEnd)) {
            let entry = self.next_decoded(waited)?;
            match entry {
                Decoded::Failed(error) => return Err(error),
                Decoded::Unlisted(..) | Decoded::Counted(..) | Decoded::EpochEnd => {}
                Decoded::Sample(..) | Decoded::Broken(..) | Decoded::LeftOut(_) | Decoded::Foreign(..) => count += 1,
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// [`Loader::account`], where entries may be other processes'.
    fn account_shared(&mut self, entry: Decoded, fates: &mut Fates) -> Result<Option<Found>> {
        let entry = match entry {
            Decoded::Foreign(task, owner) => match fates.next(owner) {
                LEFT_OUT => Decoded::LeftOut(task.after),
                BROKEN => Decoded::Broken(fates.broken(owner, &task), task.after),
                fate => {
                    self.advance(task.after);
                    self.count(&task.reference.key, fate == WITH_MASK);
                    return Ok(Some(Found::There(task)));
                }
            },
            own => own,
        };
        self.lost += u64::from(matches!(entry, Decoded::Broken(..) | Decoded::LeftOut(_)));
        Ok(self.account(entry)?.map(Found::Here))
    }

    /// Decodes what another process has decoded, and this one trains on.
    fn decode_here(&self, task: &DecodeTask) -> Result<Sample> {
        let name = task.reference.name();
        let elsewhere = |reason: &str| {
            Err(Error::Failed(format!("{name}: another process can read it, and this one not: {reason}")))
        };
        let decoder = &self.decoders[task.reference.settings];
        match unless_fatal(guarded(|| decoder.decode(&task.reference, task.after.epoch)))? {
            Ok(Some(decoded)) => Ok(decoded.sample),
            Ok(None) => elsewhere("it is left out"),
            Err(reason) => elsewhere(&reason),
        }
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
    entries.iter().filter_map(Decoded::position).for_each(|position| position.hash(&mut hasher));
    (entries.len(), matches!(entries.last(), Some(Decoded::EpochEnd))).hash(&mut hasher);
    let hashes = gather_number(collective, hasher.finish())?;
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
    let is_broken = all.iter().flatten().any(|flag| *flag == BROKEN);
    let texts = if is_broken { gather_values(collective, broken, "what is broken")? } else { vec![] };
    Ok(Fates {
        flags: all.into_iter().map(Vec::into_iter).collect(),
        broken: texts.into_iter().map(Vec::into_iter).collect(),
    })
}
