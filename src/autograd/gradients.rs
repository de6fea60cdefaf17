//! Gradients while they come together.
use crate::kernels::memory::add_in_place;
use candle_core::{Result, Tensor};

/// The gradient of one variable as far as it is known. Its memory is the slot's own.
#[derive(Default)]
pub(super) struct Slot {
    /// What there is so far; in `memory`, where that is given.
    pub sum: Option<Tensor>,
    /// Memory that the gradient belongs into.
    pub memory: Option<Tensor>,
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

impl Destination<'_> {
    /// What a `write` of [`Gradients::accumulate`] returns of a part that is a tensor already, which nobody else may hold.
    pub fn take(self, part: Tensor) -> Result<Option<Tensor>> {
        match self {
            Self::AddTo(memory) => add_in_place(memory, part),
            Self::New | Self::Overwrite(_) => Ok(Some(part)),
        }
    }
}

impl Slot {
    /// Adds a part of the gradient, which nobody else may hold.
    pub fn add(&mut self, part: Tensor) -> Result<()> {
        self.accumulate(|destination| destination.take(part))
    }

    /// Adds a part that `write` writes: see [`Gradients::accumulate`].
    fn accumulate(&mut self, write: impl FnOnce(Destination) -> Result<Option<Tensor>>) -> Result<()> {
        let new = write(match (&self.sum, &self.memory) {
            (Some(sum), _) => Destination::AddTo(sum),
            (None, Some(memory)) => Destination::Overwrite(memory),
            (None, None) => Destination::New,
        })?;
        match (new, &self.memory) {
            (Some(new), Some(memory)) => memory.slice_set(&new.to_dtype(memory.dtype())?.contiguous()?, 0, 0)?,
            (Some(new), None) => self.sum = Some(new),
            (None, _) => {}
        }
        self.sum = self.memory.clone().or(self.sum.take());
        Ok(())
    }

    /// Adds what another slot has.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        match (&self, other) {
            (Self { sum: None, memory: None }, other) => *self = other,
            (_, Self { sum: Some(part), .. }) => self.add(part)?,
            _ => {}
        }
        Ok(())
    }
}

/// The gradients of an operation's inputs: a slot for each input that needs one.
pub struct Gradients(pub(super) Vec<Option<Slot>>);

impl Gradients {
    /// Whether input number `input` needs a gradient.
    pub fn needs(&self, input: usize) -> bool {
        self.0.get(input).is_some_and(Option::is_some)
    }

    /// Adds a part of the gradient of an input, if it needs one. Nobody else may hold the part.
    pub fn add(&mut self, input: usize, part: Tensor) -> Result<()> {
        self.add_with(input, || Ok(part))
    }

    /// [`Self::add`] of what `make` makes, which is called only if the input needs a gradient.
    pub fn add_with(&mut self, input: usize, make: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        self.accumulate(input, |destination| destination.take(make()?))
    }

    /// Adds a part that `write` writes itself, if the input needs a gradient. It returns a tensor where its destination is a new
    /// one, and may do so for memory, which it then left as it was: the tensor goes over what is there, and has its values where
    /// it was to be added to them.
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
}
