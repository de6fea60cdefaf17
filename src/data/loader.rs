//! The data loader: worker threads decode batches ahead, in the order that the seed determines.
//!
//! A planner thread lists samples, `workers` threads decode them, and the consumer sorts the results back into draw
//! order. Permits limit the samples in flight to `prefetch`, which bounds memory: a decoded sample takes
//! `3·resolution²` bytes and up to `max_masks · resolution²/8` (7 MiB at 1024 pixels with 32 masks), and each worker
//! holds one full-size photograph. A cached sample holds latents and text embedding instead of pixels.
use super::sources::{findings::Findings, shards::Broken, unusable::Unusable};
use super::{
    Cache, Sample,
    data_set::DataSet,
    decode::{DecodedSample, SampleDecoder},
    keyed_temp_store,
    order::Cursor,
    plan::{DecodeTask, Decoded, PlannedShard, Planner, Position, Results},
    share::Share,
};
use crate::system::{guard::guarded, process::refused};
use crate::{
    Error, Result,
    config::{Allowed, DataConfig},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Number of broken samples that are logged one by one; after that, every hundredth.
const NAMED: u64 = 20;
/// `max_broken` is checked against at least this many samples, so that one early broken sample does not stop the run.
/// At the end of an epoch it is checked against the samples seen.
const FIRST_SEEN: u64 = 100;

/// A batch of samples in draw order.
#[derive(Debug)]
pub struct Batch {
    /// `data.batch` samples, in the order of the seed.
    pub samples: Vec<Sample>,
    /// Epoch of the first sample.
    pub epoch: u64,
    /// Resumes at the sample after this batch.
    pub cursor: Cursor,
    /// How long the caller waited for the batch.
    pub waited: Duration,
}

/// Streams batches. Dropping it stops its threads once each has finished the sample in hand.
pub struct Loader {
    /// The position after what was taken, and what was counted until there.
    pub cursor: Cursor,
    max_broken: f64,
    require_masks: bool,
    /// Whether broken samples and findings are counted without a word.
    is_silent: bool,
    /// `data.source`, for error messages.
    source: String,
    allow: Vec<Allowed>,
    /// What the tar shards of this epoch hold beside samples, as far as they were read, and the number of those.
    findings: Findings,
    listed: u64,
    /// The first broken sample, for the error that ends the run.
    first_broken: Option<String>,
    /// Samples since the start.
    samples: u64,
    /// Number of the next entry in draw order.
    pub(super) next: u64,
    ready: BTreeMap<u64, Decoded>,
    results: Receiver<(u64, Decoded)>,
    permits: Option<Sender<()>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pub(super) decoders: Arc<[SampleDecoder]>,
    /// Samples that were given to processes and came to nothing.
    pub(super) lost: u64,
}

impl Loader {
    /// Opens the data set of `config` and starts reading at `start`, by default at the beginning. With `require_masks`,
    /// samples without a usable mask cause a warning, and an epoch without any usable mask is an error.
    ///
    /// # Errors
    /// A source matches nothing; captions, classes or annotations are missing or cannot be read; `start` was saved for
    /// other shards.
    pub fn new(config: &DataConfig, seed: u64, start: Option<&Cursor>, require_masks: bool) -> Result<Self> {
        Self::of(&DataSet::open(config)?, seed, start, require_masks, None, None)
    }

    /// [`Self::new`] on an open data set; with `cache`, latents and text embeddings from it instead of pixels; with `share`,
    /// for [`Self::next_round`], of several processes.
    ///
    /// # Errors
    /// Those of [`Self::new`]. `next_batch` fails if the cache is damaged or has no entry for a sample.
    pub fn of(
        data: &DataSet,
        seed: u64,
        start: Option<&Cursor>,
        require_masks: bool,
        cache: Option<Cache>,
        share: Option<Share>,
    ) -> Result<Self> {
        let cache = cache.map(Arc::new);
        let decoders = data.readers.iter().map(|reader| SampleDecoder::new(reader.clone(), seed, cache.clone()));
        Self::with_decoders(data, seed, start, require_masks, decoders.collect(), share)
    }

    /// [`Self::new`] from the beginning, for [`Self::next_of_epoch`]: prompts and masks without pictures, flips and caption
    /// dropout.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub(crate) fn of_annotations(data: &DataSet, seed: u64) -> Result<Self> {
        let decoders = data.readers.iter().map(|reader| SampleDecoder::of_annotations(reader.clone(), seed));
        let mut loader = Self::with_decoders(data, seed, None, false, decoders.collect(), None)?;
        loader.is_silent = true;
        Ok(loader)
    }

    fn with_decoders(
        data: &DataSet,
        seed: u64,
        start: Option<&Cursor>,
        require_masks: bool,
        decoders: Arc<[SampleDecoder]>,
        share: Option<Share>,
    ) -> Result<Self> {
        data.check_captions()?;
        let config = &data.config;
        let mut shards = Vec::new();
        for source in &data.sources {
            shards.extend(source.shards.iter().flat_map(|shard| PlannedShard::repeated(shard, source.repeats)));
        }
        let sources = fingerprint(&shards);
        let source = match shards.as_slice() {
            [first, .., _] => format!("{} and {} more", first.shard.source.path().display(), shards.len() - 1),
            one => one.iter().map(|planned| planned.shard.source.path().display().to_string()).collect(),
        };
        let mut cursor = start.cloned().unwrap_or_default();
        if cursor.sources != 0 && cursor.sources != sources {
            let hint = "the saved position in the data belongs to other shards than data.source has now";
            return Err(Error::Usage(format!("{hint} ({})", shards.len())));
        }
        cursor.sources = sources;

        let workers = config.workers.max(1);
        let (permit_sender, permits) = mpsc::channel();
        let (tasks, task_queue) = mpsc::channel();
        let (results, received) = mpsc::channel();
        // Of what others decode, a reference is in memory.
        let prefetch = prefetch(workers) * share.as_ref().map_or(1, |share| share.size);
        for _ in 0..prefetch {
            permit_sender.send(()).map_err(|_| lost())?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let task_queue = Arc::new(Mutex::new(task_queue));
        let mut loader = Self {
            cursor,
            max_broken: config.max_broken,
            require_masks,
            is_silent: false,
            source,
            allow: config.allow.clone(),
            findings: Findings::default(),
            listed: 0,
            first_broken: None,
            samples: 0,
            next: 0,
            ready: BTreeMap::new(),
            results: received,
            permits: Some(permit_sender),
            stop: stop.clone(),
            threads: Vec::new(),
            decoders: decoders.clone(),
            lost: 0,
        };
        let shuffle_buffer = config.shuffle_buffer.max(1);
        // Made before the threads: where one cannot start, the planner goes first, and with it the tasks that workers wait for.
        let planner = Planner {
            shards,
            seed,
            shuffle_buffer,
            permits,
            tasks,
            results: results.clone(),
            stop: stop.clone(),
            share,
            planned: 0,
            number: 0,
        };
        for number in 0..workers {
            let (decoders, tasks, results) = (decoders.clone(), task_queue.clone(), results.clone());
            let stop = stop.clone();
            loader.spawn(format!("decode-{number}"), move || work(&decoders, &tasks, &results, &stop))?;
        }
        let start = loader.cursor.clone();
        loader.spawn("plan".into(), move || planner.run(&start))?;
        Ok(loader)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name(name).spawn(run);
        self.threads.push(thread.map_err(|problem| refused("a data thread", problem))?);
        Ok(())
    }

    /// The next `size` samples. A batch may span two epochs.
    ///
    /// # Errors
    /// Too many samples are broken, all samples of an epoch are broken, or masks are required and none of an epoch's
    /// samples has a usable one.
    pub fn next_batch(&mut self, size: usize) -> Result<Batch> {
        let mut samples = Vec::with_capacity(size);
        let mut epoch = self.cursor.epoch;
        let mut waited = Duration::ZERO;
        while samples.len() < size {
            let entry = self.next_decoded(&mut waited)?;
            let Some(decoded) = self.account(entry)? else { continue };
            if samples.is_empty() {
                epoch = self.cursor.epoch;
            }
            samples.push(decoded.sample);
        }
        Ok(Batch { samples, epoch, cursor: self.cursor.clone(), waited })
    }

    /// The next sample with what became of its masks; `None` at the epoch's end. Broken samples are counted without a word.
    ///
    /// # Errors
    /// Those that end a run.
    pub(crate) fn next_of_epoch(&mut self) -> Result<Option<DecodedSample>> {
        let mut waited = Duration::ZERO;
        loop {
            let entry = self.next_decoded(&mut waited)?;
            let is_end = matches!(entry, Decoded::EpochEnd);
            let decoded = self.account(entry)?;
            if is_end || decoded.is_some() {
                return Ok(decoded.map(|decoded| *decoded));
            }
        }
    }

    /// How many samples were broken until now of how many, and the first; `None` where none was.
    pub(crate) fn broken(&self) -> Option<String> {
        let Cursor { seen, broken, .. } = self.cursor;
        let first = self.first_broken.as_ref()?;
        Some(format!("{broken} of the first {seen} samples cannot be used, such as {first}"))
    }

    /// Says what the tar shards hold beside samples, as far as this epoch has read them.
    pub fn say_findings(&self) {
        if self.is_silent {
            return;
        }
        for (finding, count) in self.findings.iter() {
            tracing::warn!("{}: {}", self.source, finding.shown(count));
        }
    }

    /// The next entry in draw order.
    pub(super) fn next_decoded(&mut self, waited: &mut Duration) -> Result<Decoded> {
        let started = Instant::now();
        let result = loop {
            if let Some(result) = self.ready.remove(&self.next) {
                break result;
            }
            let (number, result) = self.results.recv().map_err(|_| lost())?;
            self.ready.insert(number, result);
        };
        *waited += started.elapsed();
        self.next += 1;
        if let Some(permits) = &self.permits {
            // The planner has ended and takes no permits; what it planned is still in the channel.
            let _ = permits.send(());
        }
        Ok(result)
    }

    /// Counts an entry of this process; returns it where it is a sample.
    pub(super) fn account(&mut self, entry: Decoded) -> Result<Option<Box<DecodedSample>>> {
        if let Some(position) = entry.position() {
            self.advance(position);
        }
        match entry {
            Decoded::Sample(decoded, _) => {
                self.count(&decoded.sample.key, decoded.fates.has_mask());
                return Ok(Some(decoded));
            }
            Decoded::Broken(broken, _) | Decoded::Unlisted(broken, _) => self.count_broken(&broken)?,
            Decoded::LeftOut(_) => {}
            Decoded::Counted(findings, listed) => {
                self.findings.merge(*findings);
                self.listed += listed;
                self.check_findings(FIRST_SEEN)?;
            }
            Decoded::EpochEnd => self.end_epoch()?,
            Decoded::Failed(error) => return Err(error),
            Decoded::Foreign(..) => return Err(lost()),
        }
        Ok(None)
    }

    pub(super) fn advance(&mut self, position: Position) {
        let Position { epoch, shard, member, window, drawn } = position;
        let seen = self.cursor.seen + 1;
        self.cursor = Cursor { epoch, shard, member, window, drawn, seen, ..self.cursor.clone() };
    }

    pub(super) fn count(&mut self, key: &str, has_mask: bool) {
        let Cursor { epoch, epoch_samples, epoch_with_masks, .. } = self.cursor;
        if self.require_masks && !has_mask && epoch == 0 && epoch_samples == epoch_with_masks {
            tracing::warn!("{key} brings no usable mask; others like it are counted at the end of the epoch");
        }
        self.cursor.epoch_samples += 1;
        self.samples += 1;
        if self.samples == FIRST_SEEN {
            self.say_findings();
        }
        self.cursor.epoch_with_masks += u64::from(has_mask);
    }

    fn count_broken(&mut self, broken: &Broken) -> Result<()> {
        self.cursor.broken += 1;
        let Cursor { seen, broken: count, .. } = self.cursor;
        if !self.is_silent && (count <= NAMED || count.is_multiple_of(100)) {
            tracing::warn!("skipped {}: {} ({count} broken of {seen})", broken.name, broken.reason);
        }
        self.first_broken.get_or_insert_with(|| format!("{}: {}", broken.name, broken.reason));
        self.check_broken(FIRST_SEEN)
    }

    /// Fails if more than `max_broken` of the samples seen (counted as at least `least`) are broken.
    fn check_broken(&self, least: u64) -> Result<()> {
        let Cursor { seen, broken, .. } = self.cursor;
        if broken as f64 <= self.max_broken * seen.max(least) as f64 {
            return Ok(());
        }
        let (limit, example) = (self.max_broken, self.example());
        Err(Error::Failed(format!(
            "{broken} of {seen} samples are broken, more than data.max_broken = {limit} allows{example}"
        )))
    }

    /// Fails if there are more than `max_broken` of the samples of something that is not accepted. What is a broken
    /// sample besides is counted there.
    fn check_findings(&self, least: u64) -> Result<()> {
        let most = self.max_broken * self.listed.max(least) as f64;
        let others = self.findings.iter().filter(|(finding, _)| !finding.is_broken_sample());
        let mut many = others.filter(|(_, count)| count.count as f64 > most);
        match many.find_map(|(finding, count)| finding.problem(count, &self.source, &self.allow)) {
            Some(problem) => Err(Error::Failed(problem)),
            None => Ok(()),
        }
    }

    fn example(&self) -> String {
        self.first_broken.as_ref().map_or_else(String::new, |first| format!("; for example {first}"))
    }

    /// Fails if too much of the epoch, which has ended, is broken or unread, or all.
    fn end_epoch(&mut self) -> Result<()> {
        self.say_findings();
        self.check_broken(0)?;
        self.check_findings(0)?;
        let Cursor { epoch, epoch_samples, epoch_with_masks, .. } = self.cursor;
        if epoch_samples == 0 {
            let (source, example) = (&self.source, self.example());
            return Err(Error::Failed(format!("epoch {epoch} had no usable sample in {source}{example}")));
        }
        if self.require_masks && epoch_with_masks == 0 {
            let hint = "nothing was learnt from masks; see data.min_mask_area, data.max_masks and data.ignore";
            return Err(Error::Failed(format!(
                "none of the {epoch_samples} images of epoch {epoch} brought a usable mask: {hint}"
            )));
        }
        if self.require_masks && epoch_with_masks < epoch_samples {
            let without = epoch_samples - epoch_with_masks;
            tracing::warn!("{without} of {epoch_samples} images of epoch {epoch} brought no usable mask");
        }
        (self.cursor.epoch_samples, self.cursor.epoch_with_masks) = (0, 0);
        (self.findings, self.listed) = (Findings::default(), 0);
        Ok(())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.permits = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed its message.
            let _ = thread.join();
        }
    }
}

/// Samples in flight at most.
pub(crate) fn prefetch(workers: usize) -> usize {
    (2 * workers.max(1)).max(16)
}

/// Bytes that a loader holds at most; `encoded` is the size of a cached sample, `None` for pixels.
pub fn held_bytes(config: &DataConfig, encoded: Option<u64>) -> u64 {
    let pixels = config.resolution.pow(2) as u64;
    // Most images have fewer masks than `max_masks`: half is a better estimate.
    let masks = config.max_masks as u64 / 2 * pixels / 8;
    prefetch(config.workers) as u64 * (encoded.unwrap_or(3 * pixels) + masks)
}

/// A worker thread: decodes tasks until the channel closes.
fn work(decoders: &[SampleDecoder], tasks: &Mutex<Receiver<DecodeTask>>, results: &Results, stop: &AtomicBool) {
    loop {
        let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(DecodeTask { number, reference, after }) = task else { return };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let broken = |reason| Decoded::Broken(Broken { name: reference.name(), reason }, after);
        let result = match guarded(|| decoders[reference.settings].decode(&reference, after.epoch)) {
            Ok(Some(decoded)) => Decoded::Sample(Box::new(decoded), after),
            Ok(None) => Decoded::LeftOut(after),
            Err(Unusable::Broken(reason)) => broken(reason),
            Err(Unusable::Fatal(error)) => Decoded::Failed(error),
        };
        if results.send((number, result)).is_err() {
            return;
        }
    }
}

/// A non-zero hash of the shards' file names in order. Their folder may move.
fn fingerprint(shards: &[PlannedShard]) -> u64 {
    let names = shards.iter().filter_map(|planned| planned.shard.source.path().file_name());
    let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
    keyed_temp_store::hash(&names.join("/")).max(1)
}

fn lost() -> Error {
    Error::Failed("the data threads ended unexpectedly".into())
}
