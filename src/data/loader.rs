//! The loader: batches in the seed's order, decoded ahead by worker threads.
//!
//! A planner thread lists samples, `workers` threads decode them, the consumer puts the results back into order. At
//! most `prefetch` items are under way, which bounds memory: a decoded sample takes `3·resolution²` bytes and up to
//! `max_masks · resolution²/8` (7 MiB at 1024 pixels with 32 masks), a worker the full-size photograph besides; with a
//! cache, latents and text embedding in place of the pixels and the photograph.
use super::sources::{
    shards::{self, Broken, Pairing, Shard},
    unusable::Unusable,
};
use super::{
    Cache, Sample,
    decode::Decoder,
    order::Cursor,
    plan::{Job, Outcome, Planner, Position},
    spill,
};
use crate::system::{guard::guarded, process::refused};
use crate::{Error, Result, config::DataConfig};
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

/// Broken samples are named one by one up to this many, then every hundredth.
const NAMED: u64 = 20;
/// The share of broken samples counts from at least this many samples on, so that a single early one does not stop
/// a run; at the end of an epoch it counts whatever the number.
const FIRST_SEEN: u64 = 100;

/// Samples in draw order.
#[derive(Debug)]
pub struct Batch {
    pub samples: Vec<Sample>,
    /// Epoch of the first sample.
    pub epoch: u64,
    /// The position that yields the sample after this batch.
    pub cursor: Cursor,
    /// How long the caller waited for the batch.
    pub waited: Duration,
    /// Broken samples so far, over the whole run.
    pub broken: u64,
}

/// How many samples of the epoch so far brought a usable mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    pub samples: u64,
    pub with_masks: u64,
}

/// Streams batches. Dropping it stops its threads after at most one decoding each.
pub struct Loader {
    cursor: Cursor,
    max_broken: f64,
    require_masks: bool,
    /// Where the samples come from, for errors.
    source: String,
    /// The first broken sample that this loader met, for the closing error.
    first_broken: Option<String>,
    /// Number of the next item in draw order.
    next: u64,
    ready: BTreeMap<u64, Outcome>,
    outcomes: Receiver<(u64, Outcome)>,
    tokens: Option<Sender<()>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Opens the data that `config` names, and starts to read at `start`, or at the beginning. With `require_masks`,
    /// samples without a usable mask are warned about, and an epoch without any is an error.
    ///
    /// # Errors
    /// When a source matches nothing, captions, classes or annotations cannot be read, or there are no captions, and
    /// when `start` belongs to other shards.
    pub fn new(config: &DataConfig, seed: u64, start: Option<&Cursor>, require_masks: bool) -> Result<Self> {
        Self::with_cache(config, seed, start, require_masks, None)
    }

    /// As `new`, with latents and text embeddings from a cache in place of pixels, if there is one.
    ///
    /// # Errors
    /// As `new`; later, `next_batch` fails where the cache lacks a sample or is damaged.
    pub fn with_cache(
        config: &DataConfig,
        seed: u64,
        start: Option<&Cursor>,
        require_masks: bool,
        cache: Option<Cache>,
    ) -> Result<Self> {
        let shards = shards::find(config)?;
        let pairing = Pairing::of(config);
        shards::check_captions(&shards, pairing)?;
        let sources = fingerprint(&shards);
        let source = match shards.as_slice() {
            [first, .., _] => format!("{} and {} more", first.path.display(), shards.len() - 1),
            one => one.iter().map(|shard| shard.path.display().to_string()).collect(),
        };
        let mut cursor = start.cloned().unwrap_or_default();
        if cursor.sources != 0 && cursor.sources != sources {
            let hint = "the saved position in the data belongs to other shards than data.source has now";
            return Err(Error::Usage(format!("{hint} ({})", shards.len())));
        }
        cursor.sources = sources;
        let decoder = Arc::new(Decoder::new(config, seed)?.with_cache(cache));

        let workers = config.workers.max(1);
        let (token_sender, tokens) = mpsc::channel();
        let (job_sender, jobs) = mpsc::channel();
        let (outcome_sender, outcomes) = mpsc::channel();
        let prefetch = prefetch(workers);
        for _ in 0..prefetch {
            token_sender.send(()).map_err(|_| lost())?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let jobs = Arc::new(Mutex::new(jobs));
        let mut loader = Self {
            cursor,
            max_broken: config.max_broken,
            require_masks,
            source,
            first_broken: None,
            next: 0,
            ready: BTreeMap::new(),
            outcomes,
            tokens: Some(token_sender),
            stop: stop.clone(),
            threads: Vec::new(),
        };
        for number in 0..workers {
            let (decoder, jobs, outcomes) = (decoder.clone(), jobs.clone(), outcome_sender.clone());
            let stop = stop.clone();
            loader.spawn(format!("decode-{number}"), move || work(&decoder, &jobs, &outcomes, &stop))?;
        }
        let shuffle_buffer = config.shuffle_buffer.max(1);
        let planner =
            Planner { shards, pairing, seed, shuffle_buffer, tokens, jobs: job_sender, outcomes: outcome_sender, stop };
        let start = loader.cursor.clone();
        loader.spawn("plan".into(), move || planner.run(&start))?;
        Ok(loader)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name(name).spawn(run);
        self.threads.push(thread.map_err(|problem| refused("a data thread", problem))?);
        Ok(())
    }

    /// The next `size` samples; epochs run on into each other.
    ///
    /// # Errors
    /// When too many samples are broken, an epoch had no whole sample, or, where masks are required, none with a
    /// usable mask.
    pub fn next_batch(&mut self, size: usize) -> Result<Batch> {
        let mut samples = Vec::with_capacity(size);
        let mut epoch = self.cursor.epoch;
        let mut waited = Duration::ZERO;
        while samples.len() < size {
            match self.next_outcome(&mut waited)? {
                Outcome::Sample(decoded, position) => {
                    self.advance(position);
                    self.count(&decoded.sample, decoded.has_mask);
                    if samples.is_empty() {
                        epoch = position.epoch;
                    }
                    samples.push(decoded.sample);
                }
                Outcome::Broken(broken, position) => {
                    self.advance(position);
                    self.count_broken(&broken)?;
                }
                Outcome::Failed(error) => return Err(error),
                Outcome::EpochEnd => self.end_epoch()?,
            }
        }
        Ok(Batch { samples, epoch, cursor: self.cursor.clone(), waited, broken: self.cursor.broken })
    }

    /// Mask statistics of the epoch so far.
    pub fn coverage(&self) -> Coverage {
        Coverage { samples: self.cursor.epoch_samples, with_masks: self.cursor.epoch_with_masks }
    }

    /// The outcome of the next item in draw order.
    fn next_outcome(&mut self, waited: &mut Duration) -> Result<Outcome> {
        let started = Instant::now();
        let outcome = loop {
            if let Some(outcome) = self.ready.remove(&self.next) {
                break outcome;
            }
            let (number, outcome) = self.outcomes.recv().map_err(|_| lost())?;
            self.ready.insert(number, outcome);
        };
        *waited += started.elapsed();
        self.next += 1;
        if let Some(tokens) = &self.tokens {
            // a planner that has ended needs no more tokens; what it planned is still to come
            let _ = tokens.send(());
        }
        Ok(outcome)
    }

    fn advance(&mut self, position: Position) {
        let Position { epoch, shard, member, window, drawn } = position;
        let seen = self.cursor.seen + 1;
        self.cursor = Cursor { epoch, shard, member, window, drawn, seen, ..self.cursor.clone() };
    }

    fn count(&mut self, sample: &Sample, has_mask: bool) {
        let Cursor { epoch, epoch_samples, epoch_with_masks, .. } = self.cursor;
        if self.require_masks && !has_mask && epoch == 0 && epoch_samples == epoch_with_masks {
            tracing::warn!("{} brings no usable mask; others like it are counted at the end of the epoch", sample.key);
        }
        self.cursor.epoch_samples += 1;
        self.cursor.epoch_with_masks += u64::from(has_mask);
    }

    fn count_broken(&mut self, broken: &Broken) -> Result<()> {
        self.cursor.broken += 1;
        let Cursor { seen, broken: count, .. } = self.cursor;
        if count <= NAMED || count.is_multiple_of(100) {
            tracing::warn!("skipped {}: {} ({count} broken of {seen})", broken.name, broken.reason);
        }
        self.first_broken.get_or_insert_with(|| format!("{}: {}", broken.name, broken.reason));
        self.check_broken(FIRST_SEEN)
    }

    /// Fails when more than `max_broken` of the samples seen, counted as `least` at least, are broken.
    fn check_broken(&self, least: u64) -> Result<()> {
        let Cursor { seen, broken, .. } = self.cursor;
        if broken as f64 <= self.max_broken * seen.max(least) as f64 {
            return Ok(());
        }
        let limit = self.max_broken;
        Err(Error::Failed(format!(
            "{broken} of {seen} samples are broken, more than data.max_broken = {limit} allows{}",
            self.example()
        )))
    }

    fn example(&self) -> String {
        self.first_broken.as_ref().map_or_else(String::new, |first| format!("; for example {first}"))
    }

    fn end_epoch(&mut self) -> Result<()> {
        self.check_broken(0)?;
        let Cursor { epoch, epoch_samples, epoch_with_masks, .. } = self.cursor;
        if epoch_samples == 0 {
            let source = &self.source;
            return Err(Error::Failed(format!("epoch {epoch} had no usable sample in {source}{}", self.example())));
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
        Ok(())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tokens = None;
        for thread in self.threads.drain(..) {
            // a thread that panicked has said so already
            let _ = thread.join();
        }
    }
}

/// Samples that may be under way.
fn prefetch(workers: usize) -> usize {
    (2 * workers.max(1)).max(16)
}

/// Bytes of the samples that a loader holds, `encoded` of each in place of its pixels where there is a cache.
pub fn held_bytes(config: &DataConfig, encoded: Option<u64>) -> u64 {
    let pixels = config.resolution.pow(2) as u64;
    // Most images have fewer masks than they may: half is nearer than all.
    let masks = config.max_masks as u64 / 2 * pixels / 8;
    prefetch(config.workers) as u64 * (encoded.unwrap_or(3 * pixels) + masks)
}

/// A worker: decodes jobs until there are none to come.
fn work(decoder: &Decoder, jobs: &Mutex<Receiver<Job>>, outcomes: &Sender<(u64, Outcome)>, stop: &AtomicBool) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { number, epoch, reference, after }) = job else { return };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let broken = |reason| Outcome::Broken(Broken { name: reference.name(), reason }, after);
        let outcome = match guarded(|| decoder.decode(&reference, epoch)) {
            Ok(decoded) => Outcome::Sample(Box::new(decoded), after),
            Err(Unusable::Broken(reason)) => broken(reason),
            Err(Unusable::Fatal(error)) => Outcome::Failed(error),
        };
        if outcomes.send((number, outcome)).is_err() {
            return;
        }
    }
}

/// The shards' file names in order, as a number; not zero. Their folder may move.
fn fingerprint(shards: &[Shard]) -> u64 {
    let names: Vec<_> =
        shards.iter().filter_map(|shard| shard.path.file_name()).map(|name| name.to_string_lossy()).collect();
    spill::hash(&names.join("/")).max(1)
}

fn lost() -> Error {
    Error::Failed("the data threads ended unexpectedly".into())
}
