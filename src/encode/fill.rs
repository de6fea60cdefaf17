//! Fills a cache: first all prompts, then all images, so that one encoder is in memory at a time.
use super::recipes;
use super::together::{Encoded, tell};
use crate::config::{ModelConfig, RunConfig};
use crate::data::cache::{Digest, Key, Writer};
use crate::data::codec::photograph;
use crate::data::sample_reader::SampleReader;
use crate::data::sources::shards::{Broken, SampleReference};
use crate::data::sources::unusable::{Unusable, unless_fatal};
use crate::data::{DataSet, Inventory};
use crate::distributed::Collective;
use crate::model::text::TextEncoders;
use crate::model::vae::{Vae, from_rgb8};
use crate::model::weights::files::ModelFiles;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits::IMAGE_FILE;
use crate::system::output_folder::OutputFolder;
use crate::system::progress::Progress;
use crate::system::whole_file;
use candle_core::Device;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Samples read and decoded in parallel. At 1024 pixels with both flips they take 96 MiB.
const CHUNK: usize = 16;
/// Number of broken samples that are logged; the others are counted.
const NAMED: usize = 20;

/// The result of filling a cache.
#[derive(Debug)]
pub struct Filled {
    /// Samples of the data set, and the broken ones, which training skips too.
    pub samples: u64,
    pub broken: usize,
    pub text: EntryStats,
    pub latents: EntryStats,
}

/// Statistics of one kind of entries.
#[derive(Debug)]
pub struct EntryStats {
    pub found: usize,
    pub added: usize,
    pub entry_bytes: u64,
    pub took: Duration,
}

impl EntryStats {
    fn of(writer: &Writer, took: Duration) -> Self {
        Self { found: writer.found(), added: writer.added(), entry_bytes: writer.recipe().bytes(), took }
    }
}

impl fmt::Display for EntryStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, all) = (self.took.as_secs_f64(), (self.found + self.added) as u64);
        write!(f, "{all} ({:.1} MB), {} of them new", all as f64 * self.entry_bytes as f64 / 1e6, self.added)?;
        if self.added > 0 {
            write!(f, " in {seconds:.1} s: {:.1} a second", self.added as f64 / seconds)?;
        }
        Ok(())
    }
}

impl fmt::Display for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "samples: {}, broken ones among them: {}", self.samples, self.broken)?;
        writeln!(f, "text embeddings: {}", self.text)?;
        write!(f, "latents: {}", self.latents)
    }
}

/// Adds the entries of `config`'s data set that the cache in `folder` lacks, in shards of about `shard_bytes`. Several
/// processes share the samples, and rank 0 writes: the files do not depend on how many there are.
///
/// # Errors
/// The data or the model cannot be read; the folder holds a damaged cache, or one of another model or other settings;
/// another process is filling it; there is too little space; writing fails. Shards written before stay valid.
pub fn fill(
    config: &RunConfig,
    device: &Device,
    folder: &Path,
    shard_bytes: u64,
    processes: &dyn Collective,
) -> Result<Filled> {
    let files = ModelFiles::of(&config.model)?;
    let (latents, text) = (recipes::latents(&files, &config.data)?, recipes::text(&files, &config.model, device)?);
    let hold = || OutputFolder::hold_or(folder, "another process fills this cache");
    let _held = processes.is_main().then(hold).transpose()?;
    let data = DataSet::open(&config.data)?;
    if processes.is_main() {
        Inventory::of_run(&data)?;
    }
    processes.barrier()?;
    let mut text = Writer::open(folder, text, shard_bytes)?;
    let mut latents = Writer::open(folder, latents, shard_bytes)?;

    let mut filler = CacheFiller::open(config, data)?;
    let flips = filler.mirrored().len() as u64;
    let missing = (filler.samples * flips).saturating_sub(latents.found() as u64);
    if processes.is_main() {
        check_space(folder, missing * latents.recipe().bytes())?;
    }

    let started = Instant::now();
    let ModelConfig { text_encoders: kinds, max_sequence_length, dtype, .. } = &config.model;
    let mut encoders = None;
    filler.add_text(&mut text, processes, |prompt| {
        let encoders = match &mut encoders {
            Some(encoders) => encoders,
            none => none.insert(TextEncoders::load(&files, kinds, *max_sequence_length, dtype.dtype(), device)?),
        };
        encoders.shape().compact(&encoders.encode(&[prompt])?)
    })?;
    drop(encoders);
    let text = EntryStats::of(&text, started.elapsed());

    let started = Instant::now();
    let mut vae = None;
    filler.add_latents(&mut latents, processes, |pixels| {
        let vae = match &mut vae {
            Some(vae) => vae,
            none => none.insert(Vae::load(&files, device)?.without_decoder()),
        };
        let image = from_rgb8(pixels, config.data.resolution, device)?.unsqueeze(0)?;
        Ok(vae.encode(&image)?.flatten_all()?.to_vec1()?)
    })?;
    let latents = EntryStats::of(&latents, started.elapsed());
    Ok(Filled { samples: filler.samples, broken: filler.broken.len(), text, latents })
}

/// Fills a cache with the latents and text embeddings of a data set.
struct CacheFiller<'a> {
    config: &'a RunConfig,
    data: DataSet,
    samples: u64,
    /// Names of the broken samples.
    broken: BTreeSet<String>,
}

impl<'a> CacheFiller<'a> {
    /// Counts the samples and logs those that are broken.
    fn open(config: &'a RunConfig, data: DataSet) -> Result<Self> {
        data.check_captions()?;
        let (mut samples, mut broken) = (0, vec![]);
        data.for_each_chunk(CHUNK, |items| {
            samples += items.len() as u64;
            broken.extend(items.into_iter().filter_map(|item| item.err()));
            Ok(())
        })?;
        let mut filler = Self { config, data, samples, broken: BTreeSet::new() };
        broken.into_iter().for_each(|Broken { name, reason }| filler.skip(name, &reason));
        match samples {
            0 => Err(Error::Usage("data.source: there is no sample".into())),
            _ => Ok(filler),
        }
    }

    fn reader(&self, reference: &SampleReference) -> &SampleReader {
        &self.data.readers[reference.settings]
    }

    /// The flips of an image that training may draw.
    fn mirrored(&self) -> &'static [bool] {
        if self.config.data.flip { &[false, true] } else { &[false] }
    }

    fn skip(&mut self, name: String, reason: &str) {
        if self.broken.len() < NAMED && !self.broken.contains(&name) {
            tracing::warn!("passed over {name}: {reason}");
        }
        self.broken.insert(name);
    }

    /// Adds the embedding of each distinct prompt, and of the empty prompt for caption dropout.
    fn add_text(
        &mut self,
        writer: &mut Writer,
        processes: &dyn Collective,
        mut encode: impl FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let mut encode = |prompt: &str| finite(encode(prompt)?, &format!("the caption {prompt:?}"));
        let key = writer.recipe().text_key("");
        if !writer.contains(&key) {
            match processes.is_main() {
                true => writer.add(key, encode("")?)?,
                false => writer.note(key),
            }
        }
        let prompt = |filler: &Self, reference: &SampleReference, writer: &Writer| {
            let prompt = filler.reader(reference).prompt(reference)?;
            Ok(vec![(writer.recipe().text_key(&prompt), prompt)])
        };
        self.add(("caption", "embeddings"), (writer, processes), prompt, |_, prompt| encode(&prompt))
    }

    /// Adds the latents of each image and flip.
    fn add_latents(
        &mut self,
        writer: &mut Writer,
        processes: &dyn Collective,
        mut encode: impl FnMut(&[u8]) -> Result<Vec<f32>>,
    ) -> Result<()> {
        self.add(("image", "latents"), (writer, processes), Self::missing_crops, |reference, pixels| {
            finite(encode(&pixels)?, &reference.name())
        })
    }

    /// Reads the samples with `read`, in parallel within a chunk, and adds what `encode` makes of each part whose key the
    /// writer lacks, in order.
    fn add<T: Send>(
        &mut self,
        (unit, entries): (&'static str, &str),
        (writer, processes): (&mut Writer, &dyn Collective),
        read: impl Fn(&Self, &SampleReference, &Writer) -> Result<Vec<(Key, T)>, Unusable> + Sync,
        mut encode: impl FnMut(&SampleReference, T) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let (rank, size) = (processes.rank(), processes.size());
        let mut progress = Progress::new(unit, 0, self.samples);
        let (mut done, mut broken) = (0, vec![]);
        self.data.for_each_chunk(CHUNK * size, |items| {
            done += items.len() as u64;
            let references: Vec<SampleReference> = items.into_iter().flatten().collect();
            // Each process has a row of them, so that it reads in few places.
            let own = references.chunks(references.len().div_ceil(size).max(1)).nth(rank).unwrap_or_default();
            let samples: Vec<_> = own.par_iter().map(|reference| guarded(|| read(self, reference, writer))).collect();
            let mut made = vec![];
            for (reference, sample) in own.iter().zip(samples) {
                let parts = unless_fatal(sample)?.unwrap_or_else(|reason| {
                    made.push(Encoded::Broken(reference.name(), reason));
                    vec![]
                });
                for (key, part) in parts {
                    // The part may occur twice.
                    let is_made = |made: &Encoded| matches!(made, Encoded::Entry(other, _) if *other == key);
                    if !writer.contains(&key) && !made.iter().any(is_made) {
                        made.push(Encoded::Entry(key, encode(reference, part)?));
                    }
                }
            }
            for made in tell(made, processes)? {
                match made {
                    Encoded::Broken(name, reason) => broken.push((name, reason)),
                    Encoded::Entry(key, values) if processes.is_main() => writer.add(key, values)?,
                    Encoded::Entry(key, _) => writer.note(key),
                }
            }
            progress.update(done, &format!("{} new {entries}", writer.added()));
            Ok(())
        })?;
        broken.into_iter().for_each(|(name, reason)| self.skip(name, &reason));
        writer.finish()
    }

    /// The crops of an image whose latents are missing; the image is decoded only if there are any.
    fn missing_crops(&self, reference: &SampleReference, writer: &Writer) -> Result<Vec<(Key, Vec<u8>)>, Unusable> {
        let file = reference.image.read(&reference.shard, IMAGE_FILE)?;
        let reader = self.reader(reference);
        let digest = Digest::of_picture(&file, &photograph::header(&file)?, reader.background());
        let keys = self.mirrored().iter().map(|mirrored| (writer.recipe().latents_key(&digest, *mirrored), *mirrored));
        let (keys, mirrored): (Vec<Key>, Vec<bool>) = keys.filter(|(key, _)| !writer.contains(key)).unzip();
        if keys.is_empty() {
            return Ok(vec![]);
        }
        Ok(keys.into_iter().zip(reader.crops(&file, &mirrored)?).collect())
    }
}

/// Checks that the encoder's output is finite.
fn finite(values: Vec<f32>, what: &str) -> Result<Vec<f32>> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(Error::Failed(format!("{what}: the encoder's output is not finite"))),
    }
}

/// Fails if the disk of `folder` has less than `bytes` free.
fn check_space(folder: &Path, bytes: u64) -> Result<()> {
    let Some(free) = whole_file::free_bytes(folder).filter(|free| bytes > *free) else { return Ok(()) };
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let (needed, free) = (gigabytes(bytes), gigabytes(free));
    Err(Error::file(folder, format!("the latents take {needed:.1} GB more, but only {free:.1} GB are free")))
}
