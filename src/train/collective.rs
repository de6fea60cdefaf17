//! The processes of a run, which train one adapter together.
//!
//! `W` processes with `train.accumulate = A` compute what one does with `accumulate = W·A`, to the bit: of the step's
//! micro-batches process `r` takes number `r`, `W + r`, `2W + r`, … of the one global order, and all sum gradients and
//! loss terms in that order. A micro-batch's mask loss is normalised over its own masks, whatever the number of
//! processes.
use crate::system::error::{Error, Result};
use candle_core::{Device, Tensor};

/// The processes of a run, seen from one of them. All call the same methods in the same order.
pub trait Collective {
    /// This process, from 0. That of rank 0 prints, measures and writes files.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// The tensors of all processes in rank order, at all of them; their shapes are alike.
    ///
    /// # Errors
    /// A process has failed.
    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>>;

    /// The tensor of rank 0, at all processes.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn broadcast(&self, tensor: &Tensor) -> Result<Tensor>;

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn barrier(&self) -> Result<()>;

    /// Ends the run of all processes: the others would wait for this one forever.
    fn abort(&self, problem: &Error);

    /// Whether this is rank 0.
    fn is_main(&self) -> bool {
        self.rank() == 0
    }

    /// Whether any process says so.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn any(&self, flag: bool) -> Result<bool> {
        let flags = self.gather(&Tensor::new(&[u8::from(flag)], &Device::Cpu)?)?;
        let flags = flags.iter().map(|flag| Ok(flag.to_vec1::<u8>()? != [0])).collect::<Result<Vec<_>>>()?;
        Ok(flags.contains(&true))
    }

    /// What rank 0 says.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn main_says(&self, flag: bool) -> Result<bool> {
        let flag = self.broadcast(&Tensor::new(&[u8::from(flag)], &Device::Cpu)?)?;
        Ok(flag.to_vec1::<u8>()? != [0])
    }
}

/// A run of one process.
pub struct SingleProcess;

impl Collective for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![tensor.clone()])
    }

    fn broadcast(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self, _: &Error) {}
}
