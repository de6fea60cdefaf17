//! Gradients while they come together.
use crate::kernels::memory::{add_in_place, copy_in_place};
use candle_core::{Result, Tensor};

/// The gradient of one variable as far as it is known. Its memory is the slot's own.
#[derive(Default)]
pub enum Slot {
    /// Nothing so far.
    #[default]
    Empty,
    /// Nothing so far, and memory that the gradient belongs into.
    Unwritten(Tensor),
    /// The sum so far.
    Sum(Tensor),
    /// The sum so far, in the memory that it belongs into.
    Written(Tensor),
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
    pub fn add(&mut self, part: Tensor) -> Result<()> {
        self.accumulate(|destination| match destination {
            Destination::New => Ok(Some(part)),
            Destination::Overwrite(memory) => copy_in_place(memory, &part).map(|()| None),
            Destination::AddTo(memory) => add_in_place(memory, part),
        })
    }

    /// Adds a part that `write` writes itself. It returns a tensor where its destination is a new one, and may do so
    /// where it was to add to memory, if it has added that memory's values.
    pub fn accumulate(&mut self, write: impl FnOnce(Destination) -> Result<Option<Tensor>>) -> Result<()> {
        *self = match std::mem::take(self) {
            Self::Empty => write(Destination::New)?.map_or(Self::Empty, Self::Sum),
            Self::Unwritten(memory) => {
                if let Some(new) = write(Destination::Overwrite(&memory))? {
                    copy_in_place(&memory, &new)?;
                }
                Self::Written(memory)
            }
            Self::Sum(memory) => match write(Destination::AddTo(&memory))? {
                Some(sum) => Self::Sum(sum),
                None => Self::Sum(memory),
            },
            Self::Written(memory) => {
                if let Some(sum) = write(Destination::AddTo(&memory))? {
                    copy_in_place(&memory, &sum)?;
                }
                Self::Written(memory)
            }
        };
        Ok(())
    }

    /// Adds what another slot has.
    pub(super) fn merge(&mut self, other: Self) -> Result<()> {
        match (&self, other) {
            (Self::Empty, other) => *self = other,
            (_, Self::Sum(part) | Self::Written(part)) => self.add(part)?,
            _ => {}
        }
        Ok(())
    }

    /// The sum, if there is one.
    pub(super) fn into_sum(self) -> Option<Tensor> {
        match self {
            Self::Sum(sum) | Self::Written(sum) => Some(sum),
            Self::Empty | Self::Unwritten(_) => None,
        }
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
        self.accumulate(input, |slot| slot.add(part))
    }

    /// Calls `add` with the slot of an input that needs a gradient.
    pub fn accumulate(&mut self, input: usize, add: impl FnOnce(&mut Slot) -> Result<()>) -> Result<()> {
        match self.0.get_mut(input) {
            Some(Some(slot)) => add(slot),
            _ => Ok(()),
        }
    }

    pub(super) fn into_slots(self) -> Vec<Option<Slot>> {
        self.0
    }
}
