//! The processes of a job, which do one piece of work together: what they tell each other, by which engine, and what
//! becomes of the others where one fails.
//!
//! `W` processes with `train.accumulate = A` compute what one does with `accumulate = W·A`, to the bit: of the step's
//! micro-batches process `r` takes number `r`, `W + r`, `2W + r`, … of the one global order, and all sum gradients and
//! loss terms in that order. A micro-batch's mask loss is normalised over its own masks, whatever the number of
//! processes.
#[cfg(any(feature = "mpi", feature = "nccl"))]
mod arrival;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
#[cfg(any(feature = "mpi", feature = "nccl"))]
mod star;
#[cfg(any(feature = "mpi", feature = "nccl"))]
mod watch;

use crate::system::error::{Error, Result};
use crate::system::launch::{Launch, Launcher};
use candle_core::{Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The processes of a job, seen from one of them. All call the same methods in the same order.
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

    /// Ends the job of all processes: the others would wait for this one forever. An engine of processes prints the
    /// problem and ends this process, too.
    fn abort(&self, problem: &Error);

    /// Ends the work of all, which is done: what fails from here on concerns no other process.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn close(&self) -> Result<()> {
        Ok(())
    }

    /// The slice of number [`Self::rank`] of every process's tensor `[count]`, in rank order: each is cut into as many
    /// slices of [`slice_length`] values as there are processes, with zeros behind its end.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn exchange_slices(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let length = slice_length(tensor.dim(0)?, self.size());
        let slice = |tensor: Tensor| padded(&tensor, length * self.size())?.narrow(0, length * self.rank(), length);
        Ok(self.gather(tensor)?.into_iter().map(slice).collect::<candle_core::Result<_>>()?)
    }

    /// Bytes that this process has sent so far.
    fn bytes_sent(&self) -> u64 {
        0
    }

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

    /// The bytes of all processes in rank order, at all of them; each has as many as it likes.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.gather(&Tensor::new(&[bytes.len() as i64], &Device::Cpu)?)?;
        let lengths = lengths.iter().map(|length| Ok(length.to_vec1::<i64>()?[0] as usize));
        let lengths = lengths.collect::<Result<Vec<_>>>()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![vec![]; lengths.len()]);
        }
        let mut bytes = bytes.to_vec();
        bytes.resize(longest, 0);
        let all = self.gather(&Tensor::from_vec(bytes, longest, &Device::Cpu)?)?;
        all.iter().zip(lengths).map(|(bytes, length)| Ok(bytes.narrow(0, 0, length)?.to_vec1()?)).collect()
    }

    /// As [`Self::gather_bytes`], where only rank 0 needs them: the others may get none.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn gather_bytes_at_main(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.gather_bytes(bytes)
    }

    /// The numbers of all processes in rank order, at rank 0, and none at the others; each has as many as it likes.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn gather_numbers_at_main(&self, numbers: &[f64]) -> Result<Vec<Vec<f64>>> {
        if self.size() == 1 {
            return Ok(vec![numbers.to_vec()]);
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let all = self.gather_bytes_at_main(&bytes)?;
        let numbers = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|number| f64::from_le_bytes(*number)).collect();
        Ok(all.into_iter().filter(|_| self.is_main()).map(numbers).collect())
    }

    /// The bytes of rank 0, at all processes.
    ///
    /// # Errors
    /// As [`Self::gather`].
    fn broadcast_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let length = self.broadcast(&Tensor::new(&[bytes.len() as i64], &Device::Cpu)?)?.to_vec1::<i64>()?[0] as usize;
        if length == 0 {
            return Ok(vec![]);
        }
        let mut bytes = bytes.to_vec();
        bytes.resize(length, 0);
        Ok(self.broadcast(&Tensor::from_vec(bytes, length, &Device::Cpu)?)?.to_vec1()?)
    }
}

/// The values of all processes in rank order, at all of them; `what` they are is for errors.
///
/// # Errors
/// As [`Collective::gather`].
pub fn gather_values<T: Serialize + DeserializeOwned>(
    processes: &dyn Collective,
    own: T,
    what: &str,
) -> Result<Vec<T>> {
    if processes.size() == 1 {
        return Ok(vec![own]);
    }
    let failed = |e: serde_json::Error| Error::Failed(format!("{what} cannot be told: {e}"));
    let told = processes.gather_bytes(&serde_json::to_vec(&own).map_err(failed)?)?;
    told.iter().map(|told| serde_json::from_slice(told).map_err(failed)).collect()
}

/// Values of a slice of [`Collective::exchange_slices`].
pub fn slice_length(count: usize, size: usize) -> usize {
    count.div_ceil(size)
}

/// `tensor` `[count]` with zeros behind it, `[length]`.
pub(crate) fn padded(tensor: &Tensor, length: usize) -> candle_core::Result<Tensor> {
    match length - tensor.dim(0)? {
        0 => Ok(tensor.clone()),
        missing => tensor.pad_with_zeros(0, 0, missing),
    }
}

/// A job of one process.
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

/// The processes that this one was launched with, by the engine that this build and the launcher have.
///
/// # Errors
/// `Error::Usage` where there are several, and this build has no engine for their launcher; they do not find each other.
pub fn open(launch: Option<Launch>) -> Result<Box<dyn Collective>> {
    let Some(launch) = launch else { return Ok(Box::new(SingleProcess)) };
    #[cfg(feature = "nccl")]
    if launch.by == Launcher::Torch {
        return Ok(Box::new(nccl::NcclProcess::by_tcp(launch)?));
    }
    #[cfg(feature = "mpi")]
    if launch.by != Launcher::Torch {
        let process = mpi::MpiProcess::open(launch)?;
        #[cfg(feature = "nccl")]
        if nccl::has_gpu() {
            return Ok(Box::new(nccl::NcclProcess::by_mpi(launch, process)?));
        }
        return Ok(Box::new(process));
    }
    match launch.size {
        1 => Ok(Box::new(SingleProcess)),
        size => Err(Error::Usage(no_engine(launch.by, size))),
    }
}

/// What to do where this build has no engine.
fn no_engine(by: Launcher, size: usize) -> String {
    let started = format!("{} started {size} processes", by.name());
    let alone = format!("{started}, but this program was built for one");
    let without =
        |engine: &str| format!("{started}, which need {engine} to tell each other, but this program was built without");
    let build = |features: &str| format!("cargo build --release --features {features}");
    let needs = "(it needs an MPI library and libclang)";
    let (for_gpus, for_cpus) = (build("cuda,nccl"), build("mpi"));
    match by {
        Launcher::Torch if cfg!(feature = "mpi") => {
            format!("{}: for GPUs build it by {for_gpus}; on CPUs start it by mpirun or srun", without("NCCL"))
        }
        Launcher::Torch => {
            format!(
                "{alone}: for GPUs build it by {for_gpus}; for CPUs build it by {for_cpus} {needs} and start it by mpirun"
            )
        }
        Launcher::Mpi | Launcher::Slurm if cfg!(feature = "nccl") => {
            format!("{}: build it by {} {needs}, or start it by torchrun", without("MPI"), build("cuda,nccl,mpi"))
        }
        Launcher::Mpi | Launcher::Slurm => format!("{alone}: build it by {for_cpus} {needs}"),
    }
}

/// The error that tensors of a type are carried by no engine.
#[cfg(any(feature = "mpi", feature = "nccl"))]
pub(crate) fn refuse_type(dtype: candle_core::DType) -> Error {
    Error::Failed(format!("tensors of type {} do not go from process to process", dtype.as_str()))
}
