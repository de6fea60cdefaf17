//! Fills a cache with what it lacks: first all prompts, then all images, one big network in memory at a time.
use super::recipes;
use crate::config::RunConfig;
use crate::data::Listing;
use crate::data::cache::{Digest, Key, Writer};
use crate::data::decode::Decoder;
use crate::data::sources::shards::{Broken, Reference};
use crate::data::sources::unusable::Unusable;
use crate::model::text::TextEncoders;
use crate::model::vae::{Vae, from_rgb8};
use crate::model::weights::files::ModelFiles;
use crate::report::progress::Progress;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits::IMAGE_FILE;
use crate::system::output_folder::OutputFolder;
use crate::system::whole_file;
use candle_core::Device;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Samples whose files are read and decoded together. At 1024 pixels, with both flips, 96 MiB of pixels.
const CHUNK: usize = 16;
/// Broken samples that are named; others are counted.
const NAMED: usize = 20;

/// What filling a cache did.
#[derive(Debug)]
pub struct Filled {
    /// Samples of the data set, and those of them that are broken: training passes them over, too.
    pub samples: u64,
    pub broken: usize,
    pub text: Part,
    pub latents: Part,
}

/// One kind of entries.
#[derive(Debug)]
pub struct Part {
    pub found: usize,
    pub added: usize,
    pub entry_bytes: u64,
    pub took: Duration,
}

impl Part {
    fn of(writer: &Writer, took: Duration) -> Self {
        Self { found: writer.found(), added: writer.added(), entry_bytes: writer.recipe().bytes(), took }
    }
}

impl fmt::Display for Part {
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

/// Adds to the cache in `folder` what it lacks of the data that `config` names, in shards of about `shard_bytes`.
///
/// # Errors
/// The data or the model cannot be read; the folder holds a cache of another model or other settings, or a damaged one;
/// another process fills it; there is too little space, or writing fails. What was written before stays good.
pub fn fill(config: &RunConfig, device: &Device, folder: &Path, shard_bytes: u64) -> Result<Filled> {
    let files = ModelFiles::open(&config.model.path)?;
    let (latents, text) = (recipes::latents(&files, &config.data)?, recipes::text(&files, &config.model, device)?);
    let _held = OutputFolder::hold_or(folder, "another process fills this cache")?;
    let mut text = Writer::open(folder, text, shard_bytes)?;
    let mut latents = Writer::open(folder, latents, shard_bytes)?;

    let mut job = Job::open(config)?;
    let flips = job.mirrored().len() as u64;
    let missing = (job.samples * flips).saturating_sub(latents.found() as u64);
    check_space(folder, missing * latents.recipe().bytes())?;

    let started = Instant::now();
    let mut encoders = None;
    job.add_text(&mut text, |prompt| {
        let encoders = match &mut encoders {
            Some(encoders) => encoders,
            none => none.insert(load_text_encoders(config, &files, device)?),
        };
        encoders.shape().compact(&encoders.encode(&[prompt])?)
    })?;
    drop(encoders);
    let text = Part::of(&text, started.elapsed());

    let started = Instant::now();
    let mut vae = None;
    job.add_latents(&mut latents, |pixels| {
        let vae = match &mut vae {
            Some(vae) => vae,
            none => none.insert(Vae::load(&files, device)?.without_decoder()),
        };
        let image = from_rgb8(pixels, config.data.resolution, device)?.unsqueeze(0)?;
        Ok(vae.encode(&image)?.flatten_all()?.to_vec1()?)
    })?;
    let latents = Part::of(&latents, started.elapsed());
    Ok(Filled { samples: job.samples, broken: job.broken.len(), text, latents })
}

fn load_text_encoders(config: &RunConfig, files: &ModelFiles, device: &Device) -> Result<TextEncoders> {
    let model = &config.model;
    TextEncoders::load(files, &model.text_encoders, model.max_sequence_length, model.dtype.dtype(), device)
}

/// The data that the cache is filled from.
struct Job<'a> {
    config: &'a RunConfig,
    listing: Listing,
    decoder: Decoder,
    samples: u64,
    /// Names of those that are broken.
    broken: BTreeSet<String>,
}

impl<'a> Job<'a> {
    /// Opens the data and counts its samples; names those that are broken at first sight.
    fn open(config: &'a RunConfig) -> Result<Self> {
        let listing = Listing::open(&config.data)?;
        let decoder = Decoder::new(&config.data, config.seed)?;
        let mut job = Self { config, listing, decoder, samples: 0, broken: BTreeSet::new() };
        let (mut samples, mut broken) = (0, vec![]);
        job.listing.for_each_chunk(CHUNK, |items| {
            samples += items.len() as u64;
            broken.extend(items.into_iter().filter_map(|item| item.err()));
            Ok(())
        })?;
        job.samples = samples;
        broken.into_iter().for_each(|Broken { name, reason }| job.skip(name, &reason));
        match job.samples {
            0 => Err(Error::Usage("data.source: there is no sample".into())),
            _ => Ok(job),
        }
    }

    /// Which of an image's two flips training may draw.
    fn mirrored(&self) -> &'static [bool] {
        if self.config.data.flip { &[false, true] } else { &[false] }
    }

    fn skip(&mut self, name: String, reason: &str) {
        if self.broken.len() < NAMED && !self.broken.contains(&name) {
            tracing::warn!("passed over {name}: {reason}");
        }
        self.broken.insert(name);
    }

    /// Adds the embedding of each distinct prompt, and of the empty one, which caption dropout takes.
    fn add_text(&mut self, writer: &mut Writer, mut encode: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        let mut progress = Progress::new("caption", 0, self.samples);
        let (mut done, mut broken) = (0, vec![]);
        let mut add = |writer: &mut Writer, prompt: &str| {
            let key = writer.recipe().text_key(prompt);
            if writer.contains(&key) {
                Ok(())
            } else {
                writer.add(key, finite(encode(prompt)?, &format!("the caption {prompt:?}"))?)
            }
        };
        add(writer, "")?;
        self.listing.for_each_chunk(CHUNK, |items| {
            done += items.len() as u64;
            let references: Vec<Reference> = items.into_iter().flatten().collect();
            let prompts: Vec<_> =
                references.par_iter().map(|reference| guarded(|| self.decoder.prompt(reference))).collect();
            for (reference, prompt) in references.iter().zip(prompts) {
                match prompt {
                    Ok(prompt) => add(writer, &prompt)?,
                    Err(Unusable::Broken(reason)) => broken.push((reference.name(), reason)),
                    Err(Unusable::Fatal(error)) => return Err(error),
                }
            }
            progress.update(done, &format!("{} new embeddings", writer.added()));
            Ok(())
        })?;
        broken.into_iter().for_each(|(name, reason)| self.skip(name, &reason));
        writer.finish()
    }

    /// Adds the latents of each image, in all flips.
    fn add_latents(&mut self, writer: &mut Writer, mut encode: impl FnMut(&[u8]) -> Result<Vec<f32>>) -> Result<()> {
        let mut progress = Progress::new("image", 0, self.samples);
        let (mut done, mut broken) = (0, vec![]);
        self.listing.for_each_chunk(CHUNK, |items| {
            done += items.len() as u64;
            let references: Vec<Reference> = items.into_iter().flatten().collect();
            let squares: Vec<_> =
                references.par_iter().map(|reference| guarded(|| self.missing_squares(reference, writer))).collect();
            for (reference, squares) in references.iter().zip(squares) {
                match squares {
                    Ok(squares) => {
                        for (key, pixels) in squares {
                            // The same image may be there twice.
                            if !writer.contains(&key) {
                                writer.add(key, finite(encode(&pixels)?, &reference.name())?)?;
                            }
                        }
                    }
                    Err(Unusable::Broken(reason)) => broken.push((reference.name(), reason)),
                    Err(Unusable::Fatal(error)) => return Err(error),
                }
            }
            progress.update(done, &format!("{} new latents", writer.added()));
            Ok(())
        })?;
        broken.into_iter().for_each(|(name, reason)| self.skip(name, &reason));
        writer.finish()
    }

    /// The squares of an image whose latents are not there yet; where there are none, the image is not decoded.
    fn missing_squares(&self, reference: &Reference, writer: &Writer) -> Result<Vec<(Key, Vec<u8>)>, Unusable> {
        let file = reference.image.read(&reference.shard, IMAGE_FILE)?;
        let digest = Digest::of(&file);
        let keys = self.mirrored().iter().map(|mirrored| (writer.recipe().latents_key(&digest, *mirrored), *mirrored));
        let (keys, mirrored): (Vec<Key>, Vec<bool>) = keys.filter(|(key, _)| !writer.contains(key)).unzip();
        if keys.is_empty() {
            return Ok(vec![]);
        }
        Ok(keys.into_iter().zip(self.decoder.squares(&file, &mirrored)?).collect())
    }
}

/// What the model made of `what`, which must be numbers that can be trained on.
fn finite(values: Vec<f32>, what: &str) -> Result<Vec<f32>> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(Error::Failed(format!("{what}: what the model makes of it is not finite"))),
    }
}

/// Fails where the disk of `folder` has less than `bytes` free.
fn check_space(folder: &Path, bytes: u64) -> Result<()> {
    let Some(free) = whole_file::free_bytes(folder) else { return Ok(()) };
    if bytes <= free {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let (needed, free) = (gigabytes(bytes), gigabytes(free));
    Err(Error::file(folder, format!("the latents take {needed:.1} GB more, but only {free:.1} GB are free")))
}
