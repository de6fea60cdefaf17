//! Decodes one sample: reads and checks its files, scales, crops and mirrors them, chooses the masks.
use super::cache::{Cache, CachedSample, Digest};
use super::codec::crop::Placement;
use super::codec::photograph;
use super::masks::{MaskCounts, Masks};
use super::sample_reader::{SampleReader, size_of};
use super::sources::shards::SampleReference;
use super::sources::unusable::Unusable;
use super::{Sample, keyed_temp_store, order};
use crate::Result;
use crate::system::limits::IMAGE_FILE;
use std::sync::Arc;

/// Turns references into samples; shared by all workers.
pub struct SampleDecoder {
    reader: Arc<SampleReader>,
    seed: u64,
    /// Cached latents and embeddings, which replace the pixels.
    cache: Option<Arc<Cache>>,
    /// Whether prompts and masks alone are read: no picture, no flip, no caption dropout.
    annotations_alone: bool,
}

/// A sample, and what became of its masks before caption dropout removed them.
pub struct DecodedSample {
    pub sample: Sample,
    pub fates: MaskCounts,
}

impl SampleDecoder {
    /// Of the sources of `reader`; with `cache` image files are hashed but not decoded.
    pub fn new(reader: Arc<SampleReader>, seed: u64, cache: Option<Arc<Cache>>) -> Self {
        Self { reader, seed, cache, annotations_alone: false }
    }

    /// Reads prompts and masks alone, without flips and caption dropout.
    pub fn of_annotations(reader: Arc<SampleReader>, seed: u64) -> Self {
        Self { annotations_alone: true, ..Self::new(reader, seed, None) }
    }

    /// Decodes the sample of `reference` with the random draws of `epoch`; `None` if it is left out, as the user accepts.
    ///
    /// # Errors
    /// The sample is broken (with the reason), or the cache is damaged or has no entry for it.
    pub fn decode(&self, reference: &SampleReference, epoch: u64) -> Result<Option<DecodedSample>, Unusable> {
        if self.reader.leaves_out(reference)? {
            return Ok(None);
        }
        let file = reference.image.read(&reference.shard, IMAGE_FILE)?;
        let header = photograph::header(&file)?;
        let (reader, config) = (&self.reader, &self.reader.config);
        let is_decoded = self.cache.is_none() && !self.annotations_alone;
        let photograph = is_decoded.then(|| photograph::decode_over(&file, reader.background())).transpose()?;
        let size = photograph.as_ref().map_or(header.size, size_of);
        photograph::check_shape(size)?;
        let draws = order::augmentation(self.seed, epoch, keyed_temp_store::hash(&reference.key) ^ reference.repeat);
        let placement =
            Placement::new(size, config.resolution, config.crop, config.flip && !self.annotations_alone, &draws);
        let (prompt, Masks { masks, names: classes, fates }) =
            reader.prompt_and_masks(reference, &header, &placement.grid())?;
        let image = photograph.map_or_else(|| Ok(Vec::new()), |photograph| placement.apply(&photograph))?;
        let is_dropped = !self.annotations_alone && draws.drop_caption < config.caption_dropout;
        let key = reference.key.clone();
        let mut sample = Sample { key, epoch, image, encoded: None, prompt, classes, masks, is_dropped };
        if is_dropped {
            sample.prompt.clear();
            sample.classes.clear();
            sample.masks.clear();
        }
        if let Some(cache) = &self.cache {
            let picture = Digest::of_picture(&file, &header, reader.background());
            sample.encoded = Some(encoded(cache, reference, (&file, &picture), placement.mirror, &sample.prompt)?);
        }
        Ok(Some(DecodedSample { sample, fates }))
    }
}

/// The cached latents and text embedding of a sample.
fn encoded(
    cache: &Cache,
    reference: &SampleReference,
    (file, picture): (&[u8], &Digest),
    mirrored: bool,
    prompt: &str,
) -> Result<CachedSample, Unusable> {
    let Some(latents) = cache.latents(picture, mirrored)? else {
        // An image that does not decode is a broken sample with a cache too.
        photograph::decode(file)?;
        let what = if mirrored { "the latents of this image, mirrored" } else { "the latents of this image" };
        return Err(cache.lacks(what, &reference.name()).into());
    };
    match cache.text(prompt)? {
        Some(text) => Ok(CachedSample { latents, text }),
        None => Err(cache.lacks(&format!("the text embedding of {prompt:?}"), &reference.name()).into()),
    }
}
