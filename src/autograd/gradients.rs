//! Gradients while they come together.
use crate::kernels::memory::{add_in_place, copy_in_place};
use candle_core::{Result, Tensor};

/// The gradient of one variable as far as it is known. Its memory is the slot's own.
#[derive(Default)]
pub(super) struct Slot {
    /// What there is so far; in `memory`, where that is given.
    sum: Option<Tensor>,
    /// Memory that the gradient belongs into.
    memory: Option<Tensor>,
}

/// Where an operation writes the gradient of one of its inputs.
pub enum Destination<'a> {
    /// Into a tensor of its own making.
    New,
    /// Over what this memory holds.
    Overwrite(&'a Tensor),
    /// Added to what this memory holds.
    AddTo(&'a Tensor),
}

impl Slot {
    /// Adds a part of the gradient, which nobody else may hold.
    pub(super) fn add(&mut self, part: Tensor) -> Result<()> {
        self.accumulate(|destination| match destination {
            Destination::New => Ok(Some(part)),
            Destination::Overwrite(memory) => copy_in_place(memory, &part).map(|()| None),
            Destination::AddTo(memory) => add_in_place(memory, part),
        })
    }

    /// Adds a part that `write` writes: see [`Gradients::accumulate`].
    fn accumulate(&mut self, write: impl FnOnce(Destination) -> Result<Option<Tensor>>) -> Result<()> {
        let new = write(match (&self.sum, &self.memory) {
            (Some(sum), _) => Destination::AddTo(sum),
            (None, Some(memory)) => Destination::Overwrite(memory),
            (None, None) => Destination::New,
        })?;
        match (new, &self.memory) {
            (Some(new), Some(memory)) => copy_in_place(memory, &new)?,
            (Some(new), None) => self.sum = Some(new),
            (None, _) => {}
        }
        self.sum = self.memory.clone().or(self.sum.take());
        Ok(())
    }

    /// Empty, for a gradient that belongs into `memory`.
    pub(super) fn of_memory(memory: Tensor) -> Self {
        Self { sum: None, memory: Some(memory) }
    }

    /// Adds what another slot has.
    pub(super) fn merge(&mut self, other: Self) -> Result<()> {
        match (&self, other) {
            (Self { sum: None, memory: None }, other) => *self = other,
            (_, Self { sum: Some(part), .. }) => self.add(part)?,
            _ => {}
        }
        Ok(())
    }

    /// The sum, if there is one.
    pub(super) fn into_sum(self) -> Option<Tensor> {
        self.sum
    }
}

/// The gradients of an operation's inputs.
pub struct Gradients(Vec<Option<Slot>>);

impl Gradients {
    /// A slot for each input that needs a gradient.
    pub(super) fn new(slots: Vec<Option<Slot>>) -> Self {
        Self(slots)
    }

    /// Whether input number `input` needs a gradient.
    pub fn needs(&self, input: usize) -> bool {
        self.0.get(input).is_some_and(Option::is_some)
    }

    /// Adds a part of the gradient of an input, if it needs one. Nobody else may hold the part.
    pub fn add(&mut self, input: usize, part: Tensor) -> Result<()> {
        match self.0.get_mut(input) {
            Some(Some(slot)) => slot.add(part),
            _ => Ok(()),
        }
    }

    /// Adds a part that `write` writes itself, if the input needs a gradient. It returns a tensor where its destination is a new
    /// one, and may do so where it was to add to memory, if it has added that memory's values.
    pub fn accumulate(
        &mut self,
        input: usize,
        write: impl FnOnce(Destination) -> Result<Option<Tensor>>,
    ) -> Result<()> {
        match self.0.get_mut(input) {
            Some(Some(slot)) => slot.accumulate(write),
            _ => Ok(()),
        }
    }

    pub(super) fn into_slots(self) -> Vec<Option<Slot>> {
        self.0
    }
}
