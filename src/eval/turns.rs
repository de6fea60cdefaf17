//! Several processes that measure one model: they take turns with the batches, and rank 0 has what all have found, in the
//! order of the batches. So sums are those of one process, to the bit.
use crate::distributed::Collective;
use crate::system::error::{Error, Result};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// The processes that measure together, seen from one of them. Each measures the same, in the same order.
pub struct Turns<'a> {
    /// The processes.
    pub processes: &'a dyn Collective,
    stop: Option<&'a AtomicBool>,
    is_stopped: Cell<bool>,
}

impl<'a> Turns<'a> {
    /// Of these processes.
    pub fn new(processes: &'a dyn Collective) -> Self {
        Self { processes, stop: None, is_stopped: Cell::new(false) }
    }

    /// Of these processes, which all end a measurement between two batches where `stop` is set in any of them.
    pub fn until(processes: &'a dyn Collective, stop: &'a AtomicBool) -> Self {
        Self { stop: Some(stop), ..Self::new(processes) }
    }

    /// Whether this is rank 0, which gets what all have found.
    pub fn is_main(&self) -> bool {
        self.processes.is_main()
    }

    /// Whether the processes have agreed to stop.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.get()
    }

    /// Asks all processes, which call it together, whether they are to stop.
    ///
    /// # Errors
    /// A process has failed.
    pub fn agree_to_stop(&self) -> Result<bool> {
        if let Some(stop) = self.stop.filter(|_| !self.is_stopped.get()) {
            self.is_stopped.set(self.processes.any(stop.load(Ordering::Relaxed))?);
        }
        Ok(self.is_stopped.get())
    }

    /// Calls `work` with the number of each of the `batches` that is this process's.
    ///
    /// # Errors
    /// Those of `work`; the processes were asked to stop, which [`Self::is_stopped`] says at all of them.
    pub fn each(&self, batches: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<()> {
        self.rounds(batches, |own| own.map_or(Ok(()), &mut work))
    }

    /// Calls `work` with the number of each of the `batches` that is this process's, and at rank 0 `take` with what `work`
    /// has returned for every batch, in their order.
    ///
    /// # Errors
    /// As [`Self::each`], and those of `take`.
    pub fn gather_each(
        &self,
        batches: usize,
        mut work: impl FnMut(usize) -> Result<Vec<f64>>,
        mut take: impl FnMut(&[f64]) -> Result<()>,
    ) -> Result<()> {
        let mut left = batches;
        self.rounds(batches, |own| {
            let found = own.map_or_else(|| Ok(vec![]), &mut work)?;
            let all = self.processes.gather_numbers_at_main(&found)?;
            all.iter().take(left).try_for_each(|found| take(found))?;
            left = left.saturating_sub(self.processes.size());
            Ok(())
        })
    }

    /// Rounds, in each of which every process has a batch, as long as there are any.
    fn rounds(&self, batches: usize, mut round: impl FnMut(Option<usize>) -> Result<()>) -> Result<()> {
        for first in (0..batches).step_by(self.processes.size()) {
            if self.agree_to_stop()? {
                return Err(Error::Failed("stopped".into()));
            }
            round(Some(first + self.processes.rank()).filter(|own| *own < batches))?;
        }
        Ok(())
    }

    /// At rank 0 the pieces of all processes in the order of their numbers, no two of which are alike; at the others none.
    ///
    /// # Errors
    /// A process has failed.
    pub fn pieces_at_main(&self, pieces: Vec<(usize, Vec<u8>)>) -> Result<Vec<Vec<u8>>> {
        let mut all = pieces;
        if self.processes.size() > 1 {
            let mut told = vec![];
            for (number, piece) in &all {
                told.extend((*number as u64).to_le_bytes());
                told.extend((piece.len() as u64).to_le_bytes());
                told.extend(piece);
            }
            let told = self.processes.gather_bytes_at_main(&told)?;
            all = told.iter().filter(|_| self.is_main()).flat_map(|told| read_pieces(told)).collect();
        }
        Ok(all.into_iter().collect::<BTreeMap<_, _>>().into_values().collect())
    }
}

/// Numbered pieces as [`Turns::pieces_at_main`] sends them.
fn read_pieces(mut told: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut pieces = vec![];
    while let Some((head, rest)) = told.split_at_checked(16) {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte));
        let (piece, rest) = rest.split_at(number(&head[8..]).min(rest.len()));
        pieces.push((number(&head[..8]), piece.to_vec()));
        told = rest;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::SingleProcess;

    #[test]
    fn batches_are_taken_in_their_order() {
        let turns = Turns::new(&SingleProcess);
        let (mut seen, mut taken) = (vec![], vec![]);
        let see = |batch| {
            seen.push(batch);
            Ok(())
        };
        turns.each(3, see).expect("each");
        let twice = |batch: usize| Ok(vec![batch as f64, 0.5]);
        let take = |found: &[f64]| {
            taken.push(found.to_vec());
            Ok(())
        };
        turns.gather_each(3, twice, take).expect("gathered");
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(taken, [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]);
    }

    #[test]
    fn who_is_asked_to_stop_does_so_between_batches() {
        let stop = AtomicBool::new(false);
        let turns = Turns::until(&SingleProcess, &stop);
        let mut seen = 0;
        let ended = turns.each(5, |_| {
            seen += 1;
            stop.store(seen == 2, Ordering::Relaxed);
            Ok(())
        });
        assert!(ended.is_err() && turns.is_stopped());
        assert_eq!(seen, 2);
    }

    #[test]
    fn pieces_come_in_the_order_of_their_numbers() {
        let turns = Turns::new(&SingleProcess);
        let pieces = turns.pieces_at_main(vec![(300, b"last".to_vec()), (2, vec![]), (0, b"first".to_vec())]);
        assert_eq!(pieces.expect("pieces"), [b"first".to_vec(), vec![], b"last".to_vec()]);
        let told = [&300u64.to_le_bytes()[..], &2u64.to_le_bytes(), b"ab", &[1, 0, 0, 0, 0, 0, 0, 0], &[0; 8]].concat();
        assert_eq!(read_pieces(&told), [(300, b"ab".to_vec()), (1, vec![])]);
    }
}
