//! Processes that tell each other by MPI: Open MPI, MPICH and what descends from it.
//!
//! All sleep until the others have come, and send then: MPI's own waiting keeps a core busy, which the threads that load data
//! need, and rank 0 may measure for minutes while the others wait.
use super::arrival::Arrival;
use super::star;
use super::watch::Watch;
use super::{Collective, padded, refuse_type, slice_length};
use crate::system::error::{Error, Result};
use crate::system::launch::{Launch, Launcher};
use crate::system::terminal::complain_of;
use candle_core::{DType, Device, Tensor, WithDType};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Bytes that go in one call at most: MPI counts in 31 bits, and what it copies is bounded.
const PIECE: usize = 256 << 20;
/// How long a process that waits looks for the others without a rest, and then how long it sleeps at most.
const AWAKE: Duration = Duration::from_micros(200);
const ASLEEP: Duration = Duration::from_micros(500);
/// Bytes of rank 0's addresses.
const ADDRESSES: usize = 1024;
/// Time for all processes to start MPI: on many machines programs come from one disk.
const STARTING: Duration = Duration::from_secs(120);
/// Time for processes to connect that MPI has connected already.
const CONNECTING: Duration = Duration::from_secs(20);
/// Time until then for all of that: whoever is missing is named before.
const MEETING: Duration = Duration::from_secs(25);

/// One of the processes that `mpirun` or `srun` started.
pub struct MpiProcess {
    world: SimpleCommunicator,
    /// MPI ends with it.
    universe: RefCell<Option<Universe>>,
    watch: Option<Watch>,
    rank: usize,
    size: usize,
    sent: Cell<u64>,
}

impl MpiProcess {
    /// Starts MPI and the watch over the other processes.
    ///
    /// # Errors
    /// MPI is not the launcher's, or the processes do not find each other.
    pub fn open(launch: Launch) -> Result<Self> {
        let arrival = (launch.size > 1).then(|| Arrival::await_others(launch, STARTING)).transpose()?;
        if launch.by == Launcher::Slurm && launch.size > 1 && std::env::var_os("PMIX_NAMESPACE").is_none() {
            let library = mpi::environment::library_version().unwrap_or_default();
            if library.starts_with("Open MPI") {
                tracing::warn!(
                    "srun was started without --mpi=pmix, by which the processes of Open MPI find each other"
                );
            }
        }
        let Some(universe) = mpi::initialize() else {
            return Err(Error::Failed("MPI runs already in this process".into()));
        };
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        if (rank, size) != (launch.rank, launch.size) {
            let library = mpi::environment::library_version().unwrap_or_default();
            let library = library.split([',', '\n']).next().unwrap_or("MPI").trim_end_matches('\0').to_string();
            let (by, wanted, place) = (launch.by.name(), launch.size, launch.rank);
            return Err(Error::Usage(format!(
                "{by} started process {place} of {wanted}, but {library} says that it is {rank} of {size}: this program was \
                 built with another MPI than the launcher is of (or start it by srun --mpi=pmix)"
            )));
        }
        let mut process =
            Self { world, universe: RefCell::new(Some(universe)), watch: None, rank, size, sent: Cell::new(0) };
        if let Some(arrival) = &arrival {
            arrival.go_on(MEETING, None);
            process.watch = process.watch_over_others(arrival)?;
        }
        Ok(process)
    }

    /// Connects with rank 0, or all others. Where a machine lets nothing through but MPI, the job goes on without a watch.
    fn watch_over_others(&self, arrival: &Arrival) -> Result<Option<Watch>> {
        let host = mpi::environment::processor_name().unwrap_or_default();
        let is_main = self.rank == 0;
        let listener = is_main.then(star::listen).transpose()?;
        let mut lines = vec![];
        if let Some(listener) = &listener {
            lines = vec![RandomState::new().hash_one(std::process::id()).to_string(), host.clone()];
            lines.extend(star::addresses(listener, &host)?);
        }
        // Without waiting for all: who does not come is to be named.
        let mut told = lines.join("\n").into_bytes();
        told.resize(ADDRESSES, b' ');
        self.world.process_at_rank(0).broadcast_into(&mut told[..]);
        let told = String::from_utf8_lossy(&told).trim_end().to_string();
        let mut lines = told.lines();
        let token = lines.next().and_then(|token| token.parse().ok()).unwrap_or_default();
        let is_neighbour = lines.next() == Some(host.as_str());
        let mut addresses: Vec<String> = lines.map(str::to_string).collect();
        if is_neighbour {
            let port = addresses.first().and_then(|address| address.rsplit(':').next()).unwrap_or_default();
            addresses.insert(0, format!("127.0.0.1:{port}"));
        }
        let peers = match &listener {
            Some(listener) => star::serve(listener, token, self.size, &[], &host, CONNECTING),
            None => star::join(&addresses, token, self.rank, &host, CONNECTING).map(|(peer, _)| vec![peer]),
        };
        // Who is connected watches from now on, and waits for those that are still looking for rank 0.
        match &peers {
            Ok(_) => arrival.go_on(MEETING, None),
            Err(problem) => arrival.go_on(MEETING - CONNECTING, Some(problem.to_string())),
        }
        let watch = peers.and_then(|peers| Watch::start(self.rank, peers));
        if !self.any(watch.is_err())? {
            return watch.map(Some);
        }
        // They have come, and nothing but MPI passes between some of them.
        match watch {
            Ok(watch) => watch.close(),
            Err(problem) => {
                tracing::warn!("{problem}; a process that is killed or stopped may leave the others waiting");
            }
        }
        Ok(None)
    }

    /// Returns when all processes are here.
    fn meet(&self) {
        let started = Instant::now();
        let mut request = self.world.immediate_barrier();
        while let Err(waiting) = request.test() {
            request = waiting;
            match started.elapsed() {
                awake if awake < AWAKE => std::thread::yield_now(),
                asleep => std::thread::sleep((asleep / 16).min(ASLEEP)),
            }
        }
    }

    fn count_sent<T>(&self, values: usize) {
        self.sent.set(self.sent.get() + (values * size_of::<T>()) as u64);
    }

    /// The values of all processes, one after the other.
    fn gather_values<T: WithDType + Equivalence>(&self, values: &[T]) -> Vec<T> {
        self.meet();
        self.count_sent::<T>(values.len() * (self.size - 1));
        let mut all = vec![T::zero(); values.len() * self.size];
        let most = (PIECE / size_of::<T>() / self.size).max(1);
        if values.len() <= most {
            self.world.all_gather_into(values, &mut all[..]);
            return all;
        }
        let mut piece = vec![T::zero(); most * self.size];
        for (number, part) in values.chunks(most).enumerate() {
            let piece = &mut piece[..part.len() * self.size];
            self.world.all_gather_into(part, piece);
            for (rank, of_rank) in piece.chunks(part.len()).enumerate() {
                let start = rank * values.len() + number * most;
                all[start..start + part.len()].copy_from_slice(of_rank);
            }
        }
        all
    }

    /// Slice `rank` of all processes' `values`, which are one slice for each process.
    fn exchange_values<T: WithDType + Equivalence>(&self, values: &[T]) -> Vec<T> {
        self.meet();
        let length = values.len() / self.size;
        self.count_sent::<T>(length * (self.size - 1));
        let mut mine = vec![T::zero(); values.len()];
        let most = (PIECE / size_of::<T>() / self.size).max(1);
        if length <= most {
            self.world.all_to_all_into(values, &mut mine[..]);
            return mine;
        }
        for start in (0..length).step_by(most) {
            let part = most.min(length - start);
            let out: Vec<T> =
                values.chunks(length).flat_map(|slice| slice[start..start + part].iter().copied()).collect();
            let mut piece = vec![T::zero(); out.len()];
            self.world.all_to_all_into(&out[..], &mut piece[..]);
            for (slice, piece) in mine.chunks_mut(length).zip(piece.chunks(part)) {
                slice[start..start + part].copy_from_slice(piece);
            }
        }
        mine
    }

    fn broadcast_values<T: WithDType + Equivalence>(&self, mut values: Vec<T>) -> Vec<T> {
        self.meet();
        if self.rank == 0 {
            self.count_sent::<T>(values.len() * (self.size - 1));
        }
        for piece in values.chunks_mut(PIECE / size_of::<T>()) {
            self.world.process_at_rank(0).broadcast_into(piece);
        }
        values
    }
}

/// `$body` with `$kind` being the type of the tensor's values.
macro_rules! by_type {
    ($tensor:expr, $kind:ident => $body:expr) => {
        by_type!($tensor, $kind => $body, F32 f32, F64 f64, U8 u8, U32 u32, I64 i64)
    };
    ($tensor:expr, $kind:ident => $body:expr, $($dtype:ident $type:ty),*) => {
        match $tensor.dtype() {
            $(DType::$dtype => {
                type $kind = $type;
                $body
            })*
            other => return Err(refuse_type(other)),
        }
    };
}

/// `values` as tensors of the shape and on the device of `like`, as many as they fill.
fn tensors<T: WithDType>(values: &[T], like: &Tensor) -> Result<Vec<Tensor>> {
    let of = |values: &[T]| Tensor::from_slice(values, like.shape(), like.device());
    Ok(values.chunks(like.elem_count().max(1)).map(of).collect::<candle_core::Result<_>>()?)
}

impl Collective for MpiProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        by_type!(tensor, T => tensors(&self.gather_values(&tensor.flatten_all()?.to_vec1::<T>()?), tensor))
    }

    fn broadcast(&self, tensor: &Tensor) -> Result<Tensor> {
        by_type!(tensor, T => {
            let values = self.broadcast_values(tensor.flatten_all()?.to_vec1::<T>()?);
            Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?)
        })
    }

    fn barrier(&self) -> Result<()> {
        self.meet();
        Ok(())
    }

    fn exchange_slices(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let length = slice_length(tensor.dim(0)?, self.size);
        let tensor = padded(tensor, length * self.size)?;
        let like = Tensor::zeros(length, tensor.dtype(), &Device::Cpu)?;
        by_type!(tensor, T => {
            let slices = tensors(&self.exchange_values(&tensor.to_vec1::<T>()?), &like)?;
            Ok(slices.iter().map(|slice| slice.to_device(tensor.device())).collect::<candle_core::Result<_>>()?)
        })
    }

    fn gather_bytes_at_main(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.gather_values(&[bytes.len() as i64]);
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut all: Vec<Vec<u8>> = vec![vec![]; if self.rank == 0 { self.size } else { 0 }];
        let root = self.world.process_at_rank(0);
        let most = (PIECE / self.size).max(1);
        for start in (0..longest).step_by(most) {
            let part = most.min(longest - start);
            let mut piece = bytes.get(start..).map_or_else(Vec::new, |rest| rest[..part.min(rest.len())].to_vec());
            piece.resize(part, 0);
            self.meet();
            if self.rank > 0 {
                self.count_sent::<u8>(part);
                root.gather_into(&piece[..]);
                continue;
            }
            let mut pieces = vec![0u8; part * self.size];
            root.gather_into_root(&piece[..], &mut pieces[..]);
            for ((all, piece), length) in all.iter_mut().zip(pieces.chunks(part)).zip(&lengths) {
                all.extend(&piece[..part.min(*length as usize - all.len())]);
            }
        }
        Ok(all)
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.get()
    }

    fn abort(&self, problem: &Error) {
        match &self.watch {
            Some(watch) => watch.fail(problem),
            None => {
                complain_of(problem);
                self.world.abort(problem.exit_status().into())
            }
        }
    }

    fn close(&self) -> Result<()> {
        self.meet();
        if let Some(watch) = &self.watch {
            watch.close();
        }
        drop(self.universe.borrow_mut().take());
        Ok(())
    }
}
