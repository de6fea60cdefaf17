//! The planner: goes through epochs, shards and windows, and hands out what is drawn, in order.
use super::sources::{
    shards::{Broken, Pairing, Reference, Shard},
    unusable::Unusable,
};
use super::{
    decode::Decoded,
    order::{Cursor, shard_order, window_order},
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

/// A sample to be decoded. `number` counts everything drawn and is where its result belongs.
pub struct Job {
    pub number: u64,
    pub epoch: u64,
    pub reference: Reference,
    pub after: Position,
}

/// The part of a `Cursor` that the planner knows: the place after an item.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    pub epoch: u64,
    pub shard: u64,
    pub member: u64,
    pub window: u64,
    pub drawn: u64,
}

/// What became of an item.
pub enum Outcome {
    Sample(Box<Decoded>, Position),
    Broken(Broken, Position),
    /// The run cannot go on.
    Failed(Error),
    EpochEnd,
}

/// A sample, or what should be one.
type Drawable = Result<Reference, Broken>;

/// Runs in a thread of its own. Memory: the references of one window (about 200 bytes each).
pub struct Planner {
    pub shards: Vec<Shard>,
    pub pairing: Pairing,
    pub seed: u64,
    pub shuffle_buffer: usize,
    /// One token for each item that may be under way.
    pub tokens: Receiver<()>,
    pub jobs: Sender<Job>,
    pub outcomes: Sender<(u64, Outcome)>,
    pub stop: Arc<AtomicBool>,
}

impl Planner {
    /// Plans epoch after epoch from `start` until the loader is dropped.
    pub fn run(self, start: &Cursor) {
        let mut position = Position {
            epoch: start.epoch,
            shard: start.shard,
            member: start.member,
            window: start.window,
            drawn: start.drawn,
        };
        let mut number = 0;
        while self.epoch(position, &mut number).is_continue() {
            position = Position { epoch: position.epoch + 1, shard: 0, member: 0, window: 0, drawn: 0 };
        }
    }

    /// The rest of an epoch, from the window that starts at `start`.
    fn epoch(&self, start: Position, number: &mut u64) -> ControlFlow<()> {
        let shuffle = self.shuffle_buffer > 1;
        let mut at = start;
        let mut window: Vec<Drawable> = Vec::new();
        let order = shard_order(self.seed, start.epoch, self.shards.len(), shuffle);
        for (place, &shard) in (0..).zip(&order).skip(start.shard as usize) {
            let Some(shard) = self.shards.get(shard) else { continue };
            let mut member = 0;
            shard.scan(self.pairing, &mut |item| {
                if self.stop.load(Ordering::Relaxed) {
                    return ControlFlow::Break(());
                }
                let item = match item {
                    Ok(reference) => Ok(reference),
                    Err(Unusable::Broken(broken)) => Err(broken),
                    Err(Unusable::Fatal(error)) => {
                        self.tell(Outcome::Failed(error), number)?;
                        return ControlFlow::Break(());
                    }
                };
                member += 1;
                if place == start.shard && member <= start.member {
                    return ControlFlow::Continue(());
                }
                window.push(item);
                if window.len() >= self.shuffle_buffer {
                    self.draw(at, &mut window, number)?;
                    at = Position { epoch: at.epoch, shard: place, member, window: at.window + 1, drawn: 0 };
                }
                ControlFlow::Continue(())
            })?;
        }
        self.draw(at, &mut window, number)?;
        self.tell(Outcome::EpochEnd, number)
    }

    /// Hands out the items of the window that starts at `at`, less those drawn before.
    fn draw(&self, at: Position, window: &mut Vec<Drawable>, number: &mut u64) -> ControlFlow<()> {
        let order = window_order(self.seed, at.epoch, at.window, window.len(), self.shuffle_buffer > 1);
        let mut items: Vec<Option<Drawable>> = window.drain(..).map(Some).collect();
        for (drawn, place) in (1..).zip(order).skip(at.drawn as usize) {
            let after = Position { drawn, ..at };
            match items.get_mut(place).and_then(Option::take) {
                Some(Ok(reference)) => {
                    self.token()?;
                    let job = Job { number: *number, epoch: at.epoch, reference, after };
                    sent(self.jobs.send(job).is_ok())?;
                    *number += 1;
                }
                Some(Err(broken)) => self.tell(Outcome::Broken(broken, after), number)?,
                None => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn tell(&self, outcome: Outcome, number: &mut u64) -> ControlFlow<()> {
        self.token()?;
        sent(self.outcomes.send((*number, outcome)).is_ok())?;
        *number += 1;
        ControlFlow::Continue(())
    }

    /// Waits until one more item may be under way.
    fn token(&self) -> ControlFlow<()> {
        sent(self.tokens.recv().is_ok() && !self.stop.load(Ordering::Relaxed))
    }
}

/// Ends the planning where the other side is gone.
fn sent(arrived: bool) -> ControlFlow<()> {
    if arrived { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
