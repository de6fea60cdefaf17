//! An object in a store, read by ranges: front to back by a [`Scan`], and here and there for the samples that are drawn.
use super::failure::{Failure, Tries};
use super::recent_blocks::{BLOCK, RecentBlocks};
use futures_util::StreamExt;
use object_store::{GetOptions, ObjectMeta, ObjectStore, path};
use std::{
    collections::VecDeque,
    future::pending,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{runtime::Handle, task::JoinHandle, time::sleep};

/// Blocks that a scan asks for ahead: with the one in hand, 36 MiB of memory.
const AHEAD: u64 = 8;
/// How often a pause looks whether the run has failed elsewhere.
const GLANCE: Duration = Duration::from_millis(100);
/// Failures in a row that are not worth a warning.
const SILENT: u32 = 3;

/// What one thread of the runtime drives: all connections and pauses. Those that read wait for it.
static RUNTIME: LazyLock<io::Result<Handle>> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name("object-store".into()).spawn(move || runtime.block_on(pending::<()>()))?;
    Ok(handle)
});

/// The runtime of all reads.
///
/// # Errors
/// The system refuses a thread.
pub fn runtime() -> io::Result<&'static Handle> {
    RUNTIME.as_ref().map_err(|problem| io::Error::new(problem.kind(), problem.to_string()))
}

/// What the objects of a run share.
#[derive(Debug, Default)]
pub struct Shared {
    /// For how long a failing read is tried again.
    pub patience: Duration,
    /// Whether a read has failed for good, which ends the run: the others stop trying, too.
    has_failed: AtomicBool,
    has_warned: AtomicBool,
    recent: Mutex<RecentBlocks>,
    objects: AtomicU64,
}

impl Shared {
    pub fn new(patience: Duration) -> Arc<Self> {
        Arc::new(Self { patience, ..Self::default() })
    }
}

/// An object in a store.
#[derive(Debug)]
pub struct Object {
    store: Arc<dyn ObjectStore>,
    location: path::Path,
    /// The URL that is shown.
    path: PathBuf,
    /// Set by the first answer.
    version: OnceLock<Version>,
    number: u64,
    shared: Arc<Shared>,
}

/// Tells whether two answers are of the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    length: u64,
    /// ETag, or the time of the last change where there is none.
    tag: String,
}

impl Object {
    /// The object at `location`, which is not asked for yet.
    pub fn new(store: Arc<dyn ObjectStore>, location: path::Path, shown: String, shared: &Arc<Shared>) -> Self {
        let number = shared.objects.fetch_add(1, Ordering::Relaxed);
        Self { store, location, path: shown.into(), version: OnceLock::new(), number, shared: shared.clone() }
    }

    /// Its URL, without secrets.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks for the first byte, and so for length and version.
    pub async fn touch(&self) -> Result<(), Failure> {
        self.fetch(0..1).await.map(drop)
    }

    fn length(&self) -> u64 {
        self.version.get().map_or(0, |version| version.length)
    }

    /// A reader from front to back.
    pub fn scan(self: &Arc<Self>) -> Scan {
        Scan { object: self.clone(), block: None, coming: VecDeque::new(), ahead: 1 }
    }

    /// Fills `bytes` from those that begin at `offset`: from the blocks that a scan has read lately, or else by one range.
    ///
    /// # Errors
    /// `UnexpectedEof` where there are fewer; `NetworkDown` where they cannot be read.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let range = self.checked(offset, bytes.len())?;
        if bytes.is_empty() || self.recent().read(self.number, bytes, offset).map_err(temporary)? {
            return Ok(());
        }
        bytes.copy_from_slice(&runtime()?.block_on(self.fetch(range))?);
        Ok(())
    }

    fn checked(&self, offset: u64, length: usize) -> io::Result<Range<u64>> {
        match offset.checked_add(length as u64).filter(|end| *end <= self.length()) {
            Some(end) => Ok(offset..end),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn recent(&self) -> MutexGuard<'_, RecentBlocks> {
        self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a range; where that fails, the rest of it again.
    async fn fetch(&self, range: Range<u64>) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let mut tries = Tries::new(self.shared.patience);
        loop {
            let received = bytes.len();
            let Err(failure) = self.receive(range.start + received as u64..range.end, &mut bytes).await else {
                self.shared.has_warned.store(false, Ordering::Relaxed);
                return Ok(bytes);
            };
            if bytes.len() > received {
                tries.progress();
            }
            let failed = |failure| {
                self.shared.has_failed.store(true, Ordering::Relaxed);
                failure
            };
            if tries.count == SILENT && !self.shared.has_warned.swap(true, Ordering::Relaxed) {
                let (path, seconds) = (self.path.display(), self.shared.patience.as_secs());
                tracing::warn!("{path}: {}; it is tried again for {seconds} s", failure.reason);
            }
            let mut pause = tries.after(failure.clone()).map_err(failed)?;
            while !pause.is_zero() {
                if self.shared.has_failed.load(Ordering::Relaxed) {
                    return Err(failure);
                }
                let step = pause.min(GLANCE);
                sleep(step).await;
                pause -= step;
            }
        }
    }

    /// Appends the bytes of a range as far as they come.
    async fn receive(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<(), Failure> {
        let end = bytes.len() + (range.end - range.start) as usize;
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        let answer = self.store.get_opts(&self.location, options).await?;
        let ObjectMeta { size, last_modified, e_tag, .. } = &answer.meta;
        let tag = e_tag.as_ref().map(|tag| tag.trim_start_matches("W/").to_owned());
        let version = Version { length: *size, tag: tag.unwrap_or_else(|| last_modified.to_string()) };
        if *self.version.get_or_init(|| version.clone()) != version {
            return Err(Failure::lasting("it has changed since the run began; shards must stay as they are"));
        }
        let mut parts = answer.into_stream();
        while let Some(part) = parts.next().await {
            let part = part?;
            bytes.extend_from_slice(&part[..part.len().min(end - bytes.len())]);
        }
        match bytes.len() == end {
            true => Ok(()),
            false => Err(Failure::passing("the answer ends early")),
        }
    }
}

type Fetching = JoinHandle<Result<Vec<u8>, Failure>>;

/// Reads an object from front to back by blocks, some of them ahead: twice as many with each, for many a scan ends soon.
/// What it leaves out, because nobody reads there, is not fetched.
pub struct Scan {
    object: Arc<Object>,
    block: Option<(u64, Vec<u8>)>,
    coming: VecDeque<(u64, Fetching)>,
    ahead: u64,
}

impl Scan {
    /// The object's length in bytes.
    pub fn length(&self) -> u64 {
        self.object.length()
    }

    /// Fills `bytes` from those that begin at `offset`.
    ///
    /// # Errors
    /// As [`Object::read_exact_at`].
    pub fn read_exact_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let range = self.object.checked(offset, bytes.len())?;
        let (mut at, mut rest) = (range.start, bytes);
        while !rest.is_empty() {
            let block = self.block(at / BLOCK)?;
            let start = (at % BLOCK) as usize;
            let length = rest.len().min(block.len() - start);
            let (part, behind) = rest.split_at_mut(length);
            part.copy_from_slice(&block[start..start + length]);
            (at, rest) = (at + length as u64, behind);
        }
        Ok(())
    }

    fn block(&mut self, number: u64) -> io::Result<&[u8]> {
        if self.block.as_ref().is_none_or(|(held, _)| *held != number) {
            let bytes = self.next(number)?;
            self.object.recent().insert((self.object.number, number), &bytes).map_err(temporary)?;
            self.block = Some((number, bytes));
        }
        Ok(self.block.as_ref().map_or(&[], |(_, bytes)| bytes))
    }

    /// Waits for a block, and asks for those behind it.
    fn next(&mut self, number: u64) -> io::Result<Vec<u8>> {
        let runtime = runtime()?;
        while let Some((_, passed)) = self.coming.pop_front_if(|(coming, _)| *coming != number) {
            passed.abort();
        }
        let length = self.object.length();
        let first = self.coming.back().map_or(number, |(last, _)| last + 1);
        for block in first..(number + 1 + self.ahead).min(length.div_ceil(BLOCK)) {
            let (object, range) = (self.object.clone(), block * BLOCK..((block + 1) * BLOCK).min(length));
            self.coming.push_back((block, runtime.spawn(async move { object.fetch(range).await })));
        }
        self.ahead = (2 * self.ahead).min(AHEAD);
        let Some((_, task)) = self.coming.pop_front() else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        Ok(runtime.block_on(task).map_err(|problem| Failure::lasting(problem.to_string()))??)
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.coming.iter().for_each(|(_, task)| task.abort());
    }
}

/// A failure of the file of [`RecentBlocks`], which is of the run and not of the object.
fn temporary(problem: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::NetworkDown, format!("temporary file: {problem}"))
}
