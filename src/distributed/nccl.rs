//! Processes that tell each other by NCCL, each with a GPU of its own.
//!
//! What goes from process to process is copied, never summed, by NCCL: the order of its sums is its own, and differs by the
//! number of GPUs and how they are connected. The processes find each other by MPI where that is there, and else at
//! `MASTER_ADDR` and `MASTER_PORT`. NCCL's library is `libnccl.so.2`, which the program is linked to.
use super::arrival::Arrival;
use super::star;
use super::watch::Watch;
use super::{Collective, padded, refuse_type, slice_length};
use crate::kernels::cuda::start;
use crate::ops::device::{gpu_count, gpu_of_process, open_cuda, upload};
use crate::system::error::{Error, Result};
use crate::system::launch::Launch;
use crate::system::process::end_at_once;
use crate::system::siblings::host_name;
use crate::system::terminal::complain_of;
use candle_core::cuda_backend::cudarc::nccl::{result, safe::Id, sys};
use candle_core::{CudaDevice, DType, Device, Tensor};
use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::TcpListener;
use std::time::Duration;

/// Ports from `MASTER_PORT` on of which rank 0 takes the first that is free: `torchrun` itself listens at that.
const PORTS: u16 = 16;
/// Time for processes to find each other: machines of a job do not start at once.
const FINDING: Duration = Duration::from_secs(300);

/// NCCL's connection of this process with the others.
struct Communicator(sys::ncclComm_t);

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: it was made by NCCL, and nothing uses it any more. What fails here has no consequence.
        let _ = unsafe { result::comm_abort(self.0) };
    }
}

/// One of the processes that `torchrun`, `srun` or `mpirun` started, with a GPU.
pub struct NcclProcess {
    communicator: Communicator,
    device: CudaDevice,
    rank: usize,
    size: usize,
    sent: Cell<u64>,
    base: Base,
}

/// What the processes found each other by.
enum Base {
    /// MPI carries what is not on the GPU, too.
    #[cfg(feature = "mpi")]
    Mpi(Box<super::mpi::MpiProcess>),
    Tcp(Option<Watch>),
}

/// Whether this process sees a GPU.
pub fn has_gpu() -> bool {
    gpu_count() > 0
}

impl NcclProcess {
    /// The process of this place, which finds the others over TCP.
    ///
    /// # Errors
    /// `MASTER_ADDR` or `MASTER_PORT` is missing; the processes do not find each other; there is no GPU for this one.
    pub fn by_tcp(launch: Launch) -> Result<Self> {
        let Launch { rank, size, .. } = launch;
        if size == 1 {
            let id = new_id()?;
            return Self::new(launch, id, Base::Tcp(None));
        }
        let place = Place::from_environment(size)?;
        let host = host_name();
        // Who comes too late is named by those that wait for it; this looks for who stands still.
        let arrival = Arrival::await_others(launch, FINDING)?;
        arrival.go_on(2 * FINDING, Some(format!("rank {rank} on {host} has not found the others")));
        let (peers, id) = if rank == 0 {
            let id = new_id()?;
            let listener = place.listen()?;
            (star::serve(&listener, place.token, size, &bytes_of(&id), &host, FINDING)?, id)
        } else {
            let (peer, welcome) = star::join(&place.addresses(), place.token, rank, &host, FINDING)?;
            (vec![peer], id_of(&welcome)?)
        };
        let watch = Watch::start(rank, peers)?;
        drop(arrival);
        // NCCL waits for all: a process that cannot come ends them.
        match Self::new(launch, id, Base::Tcp(None)) {
            Ok(process) => Ok(Self { base: Base::Tcp(Some(watch)), ..process }),
            Err(problem) => watch.fail(&problem),
        }
    }

    /// The process of this place, which has found the others by MPI.
    ///
    /// # Errors
    /// There is no GPU for this process.
    #[cfg(feature = "mpi")]
    pub fn by_mpi(launch: Launch, mpi: super::mpi::MpiProcess) -> Result<Self> {
        let made = if mpi.is_main() { bytes_of(&new_id()?) } else { vec![] };
        let id = id_of(&mpi.broadcast_bytes(&made)?)?;
        Self::new(launch, id, Base::Mpi(Box::new(mpi)))
    }

    fn new(launch: Launch, id: Id, base: Base) -> Result<Self> {
        let Launch { rank, size, local_rank, local_size, .. } = launch;
        if !has_gpu() {
            let hint = "for CPUs build with --features mpi and start by mpirun";
            return Err(Error::Usage(format!("NCCL needs a GPU for every process, and this one sees none; {hint}")));
        }
        let device = open_cuda(gpu_of_process(local_rank, local_size)?)?.as_cuda_device()?.clone();
        device.cuda_stream().context().bind_to_thread().map_err(|e| Error::Failed(format!("CUDA: {e}")))?;
        let mut communicator = std::ptr::null_mut();
        let id = sys::ncclUniqueId { internal: *id.internal() };
        // SAFETY: the pointer is to memory of ours, and the id one of NCCL's.
        unsafe { result::comm_init_rank(&mut communicator, size as i32, id, rank as i32) }.map_err(failed)?;
        let communicator = Communicator(communicator);
        Ok(Self { communicator, device, rank, size, sent: Cell::new(0), base })
    }

    fn stream(&self) -> sys::cudaStream_t {
        self.device.cuda_stream().cu_stream().cast()
    }

    fn count_sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    /// The tensor on this process's GPU, contiguous.
    fn on_gpu(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.to_device(&Device::Cuda(self.device.clone()))?.contiguous()?)
    }

    /// Room for `count` values on the GPU.
    fn room(&self, count: usize, dtype: DType) -> Result<Tensor> {
        // SAFETY: what it is made for writes all of it, in the order of the device's one stream.
        Ok(unsafe { Tensor::empty(count, dtype, &Device::Cuda(self.device.clone()))? })
    }
}

/// What NCCL calls a type.
fn type_of(dtype: DType) -> Result<sys::ncclDataType_t> {
    match dtype {
        DType::F32 => Ok(sys::ncclDataType_t::ncclFloat32),
        DType::F64 => Ok(sys::ncclDataType_t::ncclFloat64),
        DType::U8 => Ok(sys::ncclDataType_t::ncclUint8),
        DType::U32 => Ok(sys::ncclDataType_t::ncclUint32),
        DType::I64 => Ok(sys::ncclDataType_t::ncclInt64),
        other => Err(refuse_type(other)),
    }
}

fn failed(problem: result::NcclError) -> Error {
    Error::Failed(format!("NCCL: {:?}", problem.0))
}

fn new_id() -> Result<Id> {
    Id::new().map_err(failed)
}

fn bytes_of(id: &Id) -> Vec<u8> {
    id.internal().iter().map(|byte| *byte as u8).collect()
}

fn id_of(bytes: &[u8]) -> Result<Id> {
    let mut internal = [0; 128];
    if bytes.len() != internal.len() {
        return Err(Error::Failed(format!("NCCL's id has {} bytes, expected {}", bytes.len(), internal.len())));
    }
    internal.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from as _);
    Ok(Id::uninit(internal))
}

/// Where rank 0 is.
struct Place {
    address: String,
    ports: std::ops::Range<u16>,
    /// What the processes of this job alone know.
    token: u64,
}

impl Place {
    fn from_environment(size: usize) -> Result<Self> {
        let read = |name: &str| {
            std::env::var(name).map_err(|_| {
                let text = "is not set: it says where rank 0 is, for the others to find it; torchrun sets it";
                Error::Usage(format!("{name} {text}"))
            })
        };
        let (address, port) = (read("MASTER_ADDR")?, read("MASTER_PORT")?);
        let number = port.trim().parse::<u16>().ok().filter(|port| (1..=u16::MAX - PORTS).contains(port));
        let number =
            number.ok_or_else(|| Error::Usage(format!("MASTER_PORT={port}: expected the number of a port")))?;
        // `torchrun` listens at the port itself.
        let run = std::env::var("TORCHELASTIC_RUN_ID").ok();
        let first = number + u16::from(run.is_some());
        let mut hasher = DefaultHasher::new();
        (&address, number, run, size).hash(&mut hasher);
        Ok(Self { address, ports: first..first + PORTS, token: hasher.finish() })
    }

    fn listen(&self) -> Result<TcpListener> {
        let found = self.ports.clone().find_map(|port| TcpListener::bind(("0.0.0.0", port)).ok());
        let (first, last) = (self.ports.start, self.ports.end - 1);
        found.ok_or_else(|| Error::Failed(format!("MASTER_PORT: none of the ports {first} to {last} is free")))
    }

    fn addresses(&self) -> Vec<String> {
        self.ports.clone().map(|port| format!("{}:{port}", self.address)).collect()
    }
}

impl Collective for NcclProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        #[cfg(feature = "mpi")]
        if let (Base::Mpi(mpi), Device::Cpu) = (&self.base, tensor.device()) {
            return mpi.gather(tensor);
        }
        let (kind, count) = (type_of(tensor.dtype())?, tensor.elem_count());
        self.count_sent(count * tensor.dtype().size_in_bytes() * (self.size - 1));
        let (from, to) = (self.on_gpu(tensor)?, self.room(count * self.size, tensor.dtype())?);
        let (source, target) = (start(&from)?, start(&to)?);
        // SAFETY: both tensors are as large as said, and freed in the stream's order.
        unsafe { result::all_gather(source as _, target as _, count, kind, self.communicator.0, self.stream()) }
            .map_err(failed)?;
        let of = |rank: usize| to.narrow(0, rank * count, count)?.reshape(tensor.shape())?.to_device(tensor.device());
        Ok((0..self.size).map(of).collect::<candle_core::Result<_>>()?)
    }

    fn broadcast(&self, tensor: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "mpi")]
        if let (Base::Mpi(mpi), Device::Cpu) = (&self.base, tensor.device()) {
            return mpi.broadcast(tensor);
        }
        let (kind, count) = (type_of(tensor.dtype())?, tensor.elem_count());
        let (from, to) = (self.on_gpu(tensor)?, self.room(count, tensor.dtype())?);
        let (source, target) = (start(&from)?, start(&to)?);
        // SAFETY: both tensors are as large as said, and freed in the stream's order.
        unsafe { result::broadcast(source as _, target as _, count, kind, 0, self.communicator.0, self.stream()) }
            .map_err(failed)?;
        Ok(to.reshape(tensor.shape())?.to_device(tensor.device())?)
    }

    fn barrier(&self) -> Result<()> {
        let word = upload(vec![0u8], 1, &Device::Cpu)?;
        self.gather(&word).map(|_| ())
    }

    fn exchange_slices(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let length = slice_length(tensor.dim(0)?, self.size);
        let (kind, bytes) = (type_of(tensor.dtype())?, length * tensor.dtype().size_in_bytes());
        self.count_sent(bytes * (self.size - 1));
        let from = self.on_gpu(&padded(tensor, length * self.size)?)?;
        let to = self.room(length * self.size, tensor.dtype())?;
        let (source, target) = (start(&from)?, start(&to)?);
        let (communicator, stream) = (self.communicator.0, self.stream());
        result::group_start().map_err(failed)?;
        for peer in 0..self.size {
            let offset = (peer * bytes) as u64;
            // SAFETY: the slices lie within the tensors, which are freed in the stream's order.
            unsafe {
                result::send((source + offset) as _, length, kind, peer as i32, communicator, stream)
                    .map_err(failed)?;
                result::recv((target + offset) as _, length, kind, peer as i32, communicator, stream)
                    .map_err(failed)?;
            }
        }
        result::group_end().map_err(failed)?;
        let of = |rank: usize| to.narrow(0, rank * length, length)?.to_device(tensor.device());
        Ok((0..self.size).map(of).collect::<candle_core::Result<_>>()?)
    }

    fn bytes_sent(&self) -> u64 {
        match &self.base {
            #[cfg(feature = "mpi")]
            Base::Mpi(mpi) => self.sent.get() + mpi.bytes_sent(),
            Base::Tcp(_) => self.sent.get(),
        }
    }

    fn abort(&self, problem: &Error) {
        match &self.base {
            #[cfg(feature = "mpi")]
            Base::Mpi(mpi) => mpi.abort(problem),
            Base::Tcp(Some(watch)) => watch.fail(problem),
            Base::Tcp(None) => {
                complain_of(problem);
                end_at_once(problem.exit_status())
            }
        }
    }

    fn close(&self) -> Result<()> {
        match &self.base {
            #[cfg(feature = "mpi")]
            Base::Mpi(mpi) => mpi.close(),
            Base::Tcp(watch) => {
                self.barrier()?;
                if let Some(watch) = watch {
                    watch.close();
                }
                Ok(())
            }
        }
    }
}
