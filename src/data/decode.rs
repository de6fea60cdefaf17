//! Decodes one sample: reads and checks its files, scales, crops and mirrors them, chooses the masks.
use super::codec::{
    crop::{Grid, Placement},
    photograph::{self, Header},
};
use super::masks::{Fates, MaskReader, Masks};
use super::sources::{
    captions::{Captions, Columns, first_sentences},
    shards::{Member, SampleReference},
    unusable::Unusable,
};
use super::{
    Sample,
    cache::{Cache, Digest, Encoded},
    keyed_temp_store, order,
};
use crate::{
    Result,
    config::{DataConfig, DataFormat},
    system::limits::{CAPTION, IMAGE_FILE},
    system::utf8,
};
use image::{Rgb, RgbImage};
use std::borrow::Cow;
use std::sync::Arc;

/// Turns references into samples; shared by all workers.
pub struct SampleDecoder {
    config: DataConfig,
    seed: u64,
    captions: Option<Captions>,
    masks: MaskReader,
    /// Cached latents and embeddings, which replace the pixels.
    cache: Option<Arc<Cache>>,
    /// Whether pictures are decoded.
    pictures: bool,
}

/// A sample, and what became of its masks before caption dropout removed them.
pub struct DecodedSample {
    pub sample: Sample,
    pub fates: Fates,
}

impl SampleDecoder {
    /// Reads the captions, classes and panoptic annotations that `config` names.
    ///
    /// # Errors
    /// A file cannot be read, or the format needs one that is not configured.
    pub fn new(config: &DataConfig, seed: u64) -> Result<Self> {
        let columns = Columns::of(config);
        let captions = match (&config.captions, config.format) {
            (Some(path), DataFormat::Sa1b | DataFormat::Folder) if config.has_prompts => {
                Some(Captions::read(path, columns)?)
            }
            _ => None,
        };
        Ok(Self {
            config: config.clone(),
            seed,
            captions,
            masks: MaskReader::new(config)?,
            cache: None,
            pictures: true,
        })
    }

    /// Takes latents and embeddings from `cache`, so that image files are hashed but not decoded.
    pub fn with_cache(self, cache: Option<Arc<Cache>>) -> Self {
        Self { cache, ..self }
    }

    /// Reads masks beside pictures as black and white, or as labels.
    pub fn with_mask_form(self, is_binary: bool) -> Self {
        Self { masks: self.masks.with_form(is_binary), ..self }
    }

    /// Leaves pictures empty: only prompts and masks are read.
    pub fn without_pictures(self) -> Self {
        Self { pictures: false, ..self }
    }

    /// Decodes the sample of `reference` with the random draws of `epoch`.
    ///
    /// # Errors
    /// The sample is broken (with the reason), or the cache is damaged or has no entry for it.
    pub fn decode(&self, reference: &SampleReference, epoch: u64) -> Result<DecodedSample, Unusable> {
        let file = reference.image.read(&reference.shard, IMAGE_FILE)?;
        let header = photograph::header(&file)?;
        let photograph = match self.cache.is_none() && self.pictures {
            true => Some(photograph::decode_over(&file, self.background())?),
            false => None,
        };
        let size = photograph.as_ref().map_or(header.size, size_of);
        photograph::check_shape(size)?;
        let draws = order::augmentation(self.seed, epoch, keyed_temp_store::hash(&reference.key) ^ reference.repeat);
        let placement = Placement::new(size, self.config.resolution, self.config.crop, self.config.flip, &draws);
        let (prompt, Masks { masks, names: classes, fates }) =
            self.prompt_and_masks(reference, &header, &placement.grid())?;
        let image = photograph.map_or_else(|| Ok(Vec::new()), |photograph| placement.apply(&photograph))?;
        let is_dropped = draws.drop_caption < self.config.caption_dropout;
        let key = reference.key.clone();
        let mut sample = Sample { key, epoch, image, encoded: None, prompt, classes, masks, is_dropped };
        if is_dropped {
            sample.prompt.clear();
            sample.classes.clear();
            sample.masks.clear();
        }
        if let Some(cache) = &self.cache {
            let picture = Digest::of_picture(&file, &header, self.background());
            sample.encoded =
                Some(encoded(cache, reference, (&file, &picture), placement.is_mirrored(), &sample.prompt)?);
        }
        Ok(DecodedSample { sample, fates })
    }

    /// The prompt of a sample; it does not depend on the epoch.
    ///
    /// # Errors
    /// The sample is broken (with the reason).
    pub fn prompt(&self, reference: &SampleReference) -> Result<String, Unusable> {
        if let Some(caption) = self.caption(reference)? {
            return Ok(caption);
        }
        let header = photograph::header(&reference.image.read(&reference.shard, IMAGE_FILE)?)?;
        photograph::check_shape(header.size)?;
        let grid = Placement::fixed(header.size, self.config.resolution, self.config.crop, false).grid();
        Ok(self.prompt_and_masks(reference, &header, &grid)?.0)
    }

    /// The colour behind transparent pixels.
    pub fn background(&self) -> Rgb<u8> {
        self.config.background.into()
    }

    /// Crops of an image file, one for each flag of `mirrored`; equal to the image of [`Self::decode`] unless the crop
    /// is random.
    ///
    /// # Errors
    /// The image is broken (with the reason).
    pub fn crops(&self, file: &[u8], mirrored: &[bool]) -> Result<Vec<Vec<u8>>, String> {
        let photograph = photograph::decode_over(file, self.background())?;
        let size = size_of(&photograph);
        photograph::check_shape(size)?;
        let (side, crop) = (self.config.resolution, self.config.crop);
        mirrored.iter().map(|mirror| Placement::fixed(size, side, crop, *mirror).apply(&photograph)).collect()
    }

    /// Prompt, usable masks, and the class names of the prompt (none if it is a caption).
    fn prompt_and_masks(
        &self,
        reference: &SampleReference,
        header: &Header,
        grid: &Grid,
    ) -> Result<(String, Masks), Unusable> {
        let caption = self.caption(reference)?;
        let masks = self.masks.read(reference, &self.key(reference), header, grid, caption.is_none())?;
        let prompt = match caption {
            Some(caption) => caption,
            None if masks.names.is_empty() && !self.masks.has_names() => return Err("there is no caption".into()),
            None => masks.names.join(" "),
        };
        Ok((prompt, masks))
    }

    /// The sample's caption: empty if the model takes no prompts, `None` if class names make the prompt.
    fn caption(&self, reference: &SampleReference) -> Result<Option<String>, Unusable> {
        if !self.config.has_prompts {
            return Ok(Some(String::new()));
        }
        let caption = match (&self.captions, &reference.caption) {
            (Some(captions), _) => {
                let caption = captions.take(&self.key(reference))?;
                Some(caption.ok_or("the captions file has no caption of this key")?)
            }
            (None, Some(member)) => {
                let text = utf8::text(member.read(&reference.shard, CAPTION)?);
                Some(text.map_err(|problem| format!("the caption: {problem}"))?)
            }
            (None, None) => None,
        };
        Ok(caption.map(|caption| match self.config.format {
            DataFormat::Sa1b => first_sentences(&caption, self.config.caption_sentences),
            _ => first_sentences(&caption, 0),
        }))
    }

    /// What files of captions and annotations may call a picture: its path, so that what they say of another folder's is not
    /// taken for its own. SA-1B's names are unique.
    fn key<'a>(&self, reference: &'a SampleReference) -> Cow<'a, str> {
        match &reference.image {
            Member::File(path) if self.config.format != DataFormat::Sa1b => {
                Cow::Owned(path.with_extension("").to_string_lossy().into_owned())
            }
            _ => Cow::Borrowed(&reference.key),
        }
    }
}

/// The cached latents and text embedding of a sample.
fn encoded(
    cache: &Cache,
    reference: &SampleReference,
    (file, picture): (&[u8], &Digest),
    mirrored: bool,
    prompt: &str,
) -> Result<Encoded, Unusable> {
    let Some(latents) = cache.latents(picture, mirrored)? else {
        // An image that does not decode is a broken sample with a cache too.
        photograph::decode(file)?;
        let what = if mirrored { "the latents of this image, mirrored" } else { "the latents of this image" };
        return Err(cache.lacks(what, &reference.name()).into());
    };
    match cache.text(prompt)? {
        Some(text) => Ok(Encoded { latents, text }),
        None => Err(cache.lacks(&format!("the text embedding of {prompt:?}"), &reference.name()).into()),
    }
}

fn size_of(photograph: &RgbImage) -> (usize, usize) {
    (photograph.width() as usize, photograph.height() as usize)
}
