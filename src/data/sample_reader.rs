//! Reads a sample's prompt and masks, and the crops of its picture.
use super::codec::crop::{Grid, Placement};
use super::codec::photograph::{self, PictureHeader};
use super::masks::{MaskReader, Masks};
use super::sources::captions::{Captions, Columns, first_sentences};
use super::sources::shards::{Member, SampleReference};
use super::sources::unusable::{Unusable, unless_fatal};
use crate::Result;
use crate::config::{Allowed, DataConfig, DataFormat};
use crate::system::limits::{CAPTION, IMAGE_FILE};
use crate::system::utf8;
use image::{Rgb, RgbImage};
use std::borrow::Cow;

/// The captions, classes and annotations of a group of sources; shared by all that read its samples.
pub struct SampleReader {
    /// The settings of its sources.
    pub config: DataConfig,
    /// The file of captions, where that has them.
    pub captions: Option<Captions>,
    pub masks: MaskReader,
}

impl SampleReader {
    /// Reads the captions, classes and annotations that `config` names. Masks beside pictures are black and white, or
    /// labels.
    ///
    /// # Errors
    /// A file cannot be read, or the format needs one that is not configured.
    pub fn open(config: DataConfig, is_binary: bool) -> Result<Self> {
        let file = config.captions.as_ref().filter(|_| config.has_prompts && config.format != DataFormat::Coco);
        let captions = file.map(|file| Captions::read(file, Columns::of(&config))).transpose()?;
        let masks = MaskReader::open(&config, is_binary)?;
        Ok(Self { config, captions, masks })
    }

    /// Whether the user accepts that a sample is left out because the file of captions, or the JSON of annotations, does not
    /// have it. What lies beside pictures is left out where they are listed.
    ///
    /// # Errors
    /// The run or the machine is at fault.
    pub fn leaves_out(&self, reference: &SampleReference) -> Result<bool> {
        let allows = |what| self.config.allow.contains(&what);
        let captions = self.captions.as_ref().filter(|_| allows(Allowed::CaptionsMissing));
        let annotations = self.masks.annotations.as_ref().filter(|_| allows(Allowed::MasksMissing));
        let key = self.key(reference);
        Ok(captions.map_or(Ok(false), |captions| lacks(captions.get(&key)))?
            || annotations.map_or(Ok(false), |annotations| lacks(annotations.count(&key)))?)
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

    /// Crops of an image file, one for each flag of `mirrored`; equal to the image of [`SampleDecoder::decode`](super::decode::SampleDecoder::decode) unless the crop
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
    ///
    /// # Errors
    /// The sample is broken (with the reason).
    pub fn prompt_and_masks(
        &self,
        reference: &SampleReference,
        header: &PictureHeader,
        grid: &Grid,
    ) -> Result<(String, Masks), Unusable> {
        let caption = self.caption(reference)?;
        let masks = self.masks.read(reference, &self.key(reference), header, grid, caption.is_none())?;
        let prompt = match caption {
            Some(caption) => caption,
            None if masks.names.is_empty() && self.masks.classes.is_none() => return Err("there is no caption".into()),
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
                captions.take(&self.key(reference))?.ok_or("the captions file has no caption of this key")?
            }
            (None, Some(member)) => {
                let text = utf8::text(member.read(&reference.shard, CAPTION)?);
                text.map_err(|problem| format!("the caption: {problem}"))?
            }
            (None, None) => return Ok(None),
        };
        let sentences = if self.config.format == DataFormat::Sa1b { self.config.caption_sentences } else { 0 };
        Ok(Some(first_sentences(&caption, sentences)))
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

/// Whether a file does not have what it was asked for, or not clearly.
fn lacks<T>(found: Result<Option<T>, Unusable>) -> Result<bool> {
    Ok(!matches!(unless_fatal(found)?, Ok(Some(_))))
}

/// Width and height.
pub fn size_of(photograph: &RgbImage) -> (usize, usize) {
    (photograph.width() as usize, photograph.height() as usize)
}
