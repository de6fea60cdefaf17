//! The planner: iterates over epochs, shards and windows, and sends the drawn samples to the workers in order.
use super::sources::findings::Findings;
use super::sources::shards::{Broken, Listed, SampleReference, SampleShard};
use super::sources::unusable::unless_fatal;
use super::{
    decode::DecodedSample,
    keyed_temp_store::hash,
    order::{Cursor, is_in_share, shard_order, window_order},
    share::Share,
};
use crate::Error;
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender},
    },
};

/// A sample to be decoded. `number` is its place in draw order.
pub struct DecodeTask {
    pub number: u64,
    pub reference: SampleReference,
    pub after: Position,
}

/// The part of a [`Cursor`] that the planner advances.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Position {
    /// Number of the pass over the data set, from 0.
    pub epoch: u64,
    pub shard: u64,
    pub member: u64,
    pub window: u64,
    pub drawn: u64,
}

/// One entry of the stream in draw order.
pub enum Decoded {
    Sample(Box<DecodedSample>, Position),
    Broken(Broken, Position),
    /// A sample that is broken already as it is listed.
    Unlisted(Broken, Position),
    /// A sample that another process decodes, of this rank.
    Foreign(Box<DecodeTask>, usize),
    /// A sample that the user accepts to be left out.
    LeftOut(Position),
    /// What a tar shard holds beside its samples, and the number of those.
    Counted(Box<Findings>, u64),
    /// An error that ends the run.
    Failed(Error),
    EpochEnd,
}

impl Decoded {
    /// The position after this entry, where it has one.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Sample(_, position) | Self::Broken(_, position) => Some(*position),
            Self::Unlisted(_, position) | Self::LeftOut(position) => Some(*position),
            Self::Foreign(task, _) => Some(task.after),
            Self::Counted(..) | Self::Failed(_) | Self::EpochEnd => None,
        }
    }
}

/// A shard as an epoch reads it.
#[derive(Clone)]
pub struct PlannedShard {
    pub shard: SampleShard,
    /// How many times the epoch has the shard besides.
    pub repeat: u64,
    /// The share of its samples that the epoch takes.
    pub share: f64,
}

impl PlannedShard {
    /// The shard as often as `repeats` says: a fraction is a share of its samples.
    pub fn repeated(shard: &SampleShard, repeats: f64) -> impl Iterator<Item = Self> {
        let whole = repeats as u64;
        let rest = repeats - whole as f64;
        let shares = std::iter::repeat_n(1.0, whole as usize).chain(Some(rest).filter(|&rest| rest > 0.0));
        (0..).zip(shares).map(|(repeat, share)| Self { shard: shard.clone(), repeat, share })
    }

    /// Whether the epoch takes this sample.
    fn takes(&self, item: &Listed, seed: u64, epoch: u64) -> bool {
        let key = match item {
            Ok(reference) => &reference.key,
            Err(broken) => &broken.name,
        };
        self.share >= 1.0 || is_in_share(seed, epoch, hash(key), self.share)
    }
}

/// Receives entries of the stream with their numbers, in any order.
pub type Results = Sender<(u64, Decoded)>;

/// Runs in its own thread. Memory: the references of one window (about 200 bytes each).
pub struct Planner {
    pub shards: Vec<PlannedShard>,
    pub seed: u64,
    pub shuffle_buffer: usize,
    /// Permits: one for each sample in flight.
    pub permits: Receiver<()>,
    pub tasks: Sender<DecodeTask>,
    pub results: Results,
    pub stop: Arc<AtomicBool>,
    /// With whom the tasks are shared.
    pub share: Option<Share>,
    /// Tasks planned.
    pub planned: u64,
    /// Number of the next entry.
    pub number: u64,
}

impl Planner {
    /// Plans epoch after epoch from `start` until the loader is dropped.
    pub fn run(mut self, start: &Cursor) {
        let Cursor { epoch, shard, member, window, drawn, .. } = *start;
        let mut position = Position { epoch, shard, member, window, drawn };
        while self.epoch(position).is_continue() {
            position = Position { epoch: position.epoch + 1, shard: 0, member: 0, window: 0, drawn: 0 };
        }
    }

    /// Plans the rest of an epoch, from the window that starts at `start`.
    fn epoch(&mut self, start: Position) -> ControlFlow<()> {
        let shuffle = self.shuffle_buffer > 1;
        let mut at = start;
        let mut window: Vec<Listed> = Vec::new();
        let order = shard_order(self.seed, start.epoch, self.shards.len(), shuffle);
        for (place, &shard) in (0..).zip(&order).skip(start.shard as usize) {
            let planned = self.shards[shard].clone();
            let (mut member, mut findings) = (0, Findings::default());
            planned.shard.scan(&mut findings, &mut |item| {
                if self.stop.load(Ordering::Relaxed) {
                    return ControlFlow::Break(());
                }
                let item = match unless_fatal(item) {
                    Ok(item) => item,
                    Err(error) => {
                        self.send(Decoded::Failed(error))?;
                        return ControlFlow::Break(());
                    }
                };
                member += 1;
                let is_behind = place == start.shard && member <= start.member;
                if is_behind || !planned.takes(&item, self.seed, at.epoch) {
                    return ControlFlow::Continue(());
                }
                window.push(item.map(|reference| SampleReference { repeat: planned.repeat, ..reference }));
                if window.len() >= self.shuffle_buffer {
                    self.draw(at, &mut window)?;
                    at = Position { epoch: at.epoch, shard: place, member, window: at.window + 1, drawn: 0 };
                }
                ControlFlow::Continue(())
            })?;
            if !planned.shard.is_folder {
                self.send(Decoded::Counted(Box::new(findings), member))?;
            }
        }
        self.draw(at, &mut window)?;
        self.send(Decoded::EpochEnd)
    }

    /// Sends the samples of the window that starts at `at`, except the first `at.drawn`.
    fn draw(&mut self, at: Position, window: &mut Vec<Listed>) -> ControlFlow<()> {
        let order = window_order(self.seed, at.epoch, at.window, window.len(), self.shuffle_buffer > 1);
        let mut items: Vec<Option<Listed>> = window.drain(..).map(Some).collect();
        for (drawn, place) in (1..).zip(order).skip(at.drawn as usize) {
            let after = Position { drawn, ..at };
            match items[place].take() {
                Some(Ok(reference)) => {
                    self.permit()?;
                    let task = DecodeTask { number: self.number, reference, after };
                    let share = self.share.as_ref();
                    match share.and_then(|share| share.other_owner(self.planned, self.number)) {
                        Some(owner) => {
                            let foreign = Decoded::Foreign(Box::new(task), owner);
                            sent(self.results.send((self.number, foreign)).is_ok())?;
                        }
                        None => sent(self.tasks.send(task).is_ok())?,
                    }
                    self.planned += 1;
                    self.number += 1;
                }
                Some(Err(broken)) => self.send(Decoded::Unlisted(broken, after))?,
                None => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn send(&mut self, result: Decoded) -> ControlFlow<()> {
        self.permit()?;
        sent(self.results.send((self.number, result)).is_ok())?;
        self.number += 1;
        ControlFlow::Continue(())
    }

    /// Waits for a permit.
    fn permit(&self) -> ControlFlow<()> {
        sent(self.permits.recv().is_ok() && !self.stop.load(Ordering::Relaxed))
    }
}

/// Stops planning if the receiver is gone.
fn sent(arrived: bool) -> ControlFlow<()> {
    if arrived { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
