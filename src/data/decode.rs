//! Decodes one sample: reads and checks its files, scales, crops and mirrors them, chooses the masks.
use super::codec::{
    crop::{Grid, Placement},
    labels::{Classes, LabelMap},
    mask::Mask,
    photograph,
    rle::StoredRunLengths,
};
use super::sources::{
    captions::{Captions, Columns, first_sentences},
    panoptic::Panoptic,
    shards::SampleReference,
    unusable::Unusable,
};
use super::{
    Sample,
    cache::{Cache, Encoded},
    keyed_temp_store, order,
};
use crate::{
    Error, Result,
    config::{DataConfig, DataFormat},
    system::limits::{ANNOTATIONS, CAPTION, IMAGE_FILE},
};
use image::RgbImage;
use serde::Deserialize;
use std::{collections::HashMap, io, path::PathBuf};

/// Turns references into samples; shared by all workers.
pub struct SampleDecoder {
    config: DataConfig,
    seed: u64,
    captions: Option<Captions>,
    panoptic: Option<Panoptic>,
    classes: Option<Classes>,
    /// Cached latents and embeddings, which replace the pixels.
    cache: Option<Cache>,
}

/// A sample, and whether it had a usable mask before caption dropout removed its masks.
pub struct DecodedSample {
    pub sample: Sample,
    pub has_mask: bool,
}

#[derive(Deserialize)]
struct Sa1bAnnotations {
    image: Option<ImageSize>,
    annotations: Vec<Sa1bAnnotation>,
}

#[derive(Deserialize)]
struct ImageSize {
    width: usize,
    height: usize,
}

#[derive(Deserialize)]
struct Sa1bAnnotation {
    segmentation: StoredRunLengths,
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
        let is_coco = config.format == DataFormat::Coco;
        let panoptic = config.panoptic.as_deref().filter(|_| is_coco).map(Panoptic::read).transpose()?;
        let classes = match (&config.classes, &panoptic) {
            (Some(path), _) => Some(Classes::read(path)?),
            (None, Some(panoptic)) => Some(panoptic.categories.clone()),
            (None, None) => None,
        };
        if is_coco && config.labels.is_none() {
            return Err(Error::Usage("data.labels is missing: the coco format needs the folder of label maps".into()));
        }
        if is_coco && classes.is_none() {
            let hint = "data.classes is missing: label maps need the names of their labels";
            return Err(Error::Usage(format!("{hint} (panoptic PNGs: data.panoptic)")));
        }
        Ok(Self { config: config.clone(), seed, captions, panoptic, classes, cache: None })
    }

    /// Takes latents and embeddings from `cache`, so that image files are hashed but not decoded.
    pub fn with_cache(self, cache: Option<Cache>) -> Self {
        Self { cache, ..self }
    }

    /// Decodes the sample of `reference` with the random draws of `epoch`.
    ///
    /// # Errors
    /// The sample is broken (with the reason), or the cache is damaged or has no entry for it.
    pub fn decode(&self, reference: &SampleReference, epoch: u64) -> Result<DecodedSample, Unusable> {
        let file = reference.image.read(&reference.shard, IMAGE_FILE)?;
        let photograph = match self.cache {
            None => Some(photograph::decode(&file)?),
            Some(_) => None,
        };
        let size = photograph.as_ref().map_or_else(|| photograph::size(&file), |image| Ok(size_of(image)))?;
        photograph::check_shape(size)?;
        let draws = order::augmentation(self.seed, epoch, keyed_temp_store::hash(&reference.key));
        let placement = Placement::new(size, self.config.resolution, self.config.crop, self.config.flip, &draws);
        let (prompt, masks, classes) = self.prompt_and_masks(reference, size, &placement.grid())?;
        let image = photograph.map_or_else(|| Ok(Vec::new()), |photograph| placement.apply(&photograph))?;
        let has_mask = !masks.is_empty();
        let is_dropped = draws.drop_caption < self.config.caption_dropout;
        let key = reference.key.clone();
        let mut sample = Sample { key, epoch, image, encoded: None, prompt, classes, masks, is_dropped };
        if is_dropped {
            sample.prompt.clear();
            sample.classes.clear();
            sample.masks.clear();
        }
        if let Some(cache) = &self.cache {
            sample.encoded = Some(encoded(cache, reference, &file, placement.is_mirrored(), &sample.prompt)?);
        }
        Ok(DecodedSample { sample, has_mask })
    }

    /// The prompt of a sample; it does not depend on the epoch.
    ///
    /// # Errors
    /// The sample is broken (with the reason).
    pub fn prompt(&self, reference: &SampleReference) -> Result<String, Unusable> {
        if let Some(caption) = self.caption(reference)? {
            return Ok(caption);
        }
        let size = photograph::size(&reference.image.read(&reference.shard, IMAGE_FILE)?)?;
        photograph::check_shape(size)?;
        let grid = Placement::fixed(size, self.config.resolution, self.config.crop, false).grid();
        Ok(self.prompt_and_masks(reference, size, &grid)?.0)
    }

    /// Crops of an image file, one for each flag of `mirrored`; equal to the image of [`Self::decode`] unless the crop
    /// is random.
    ///
    /// # Errors
    /// The image is broken (with the reason).
    pub fn crops(&self, file: &[u8], mirrored: &[bool]) -> Result<Vec<Vec<u8>>, String> {
        let photograph = photograph::decode(file)?;
        let size = size_of(&photograph);
        photograph::check_shape(size)?;
        let (side, crop) = (self.config.resolution, self.config.crop);
        mirrored.iter().map(|mirror| Placement::fixed(size, side, crop, *mirror).apply(&photograph)).collect()
    }

    /// Prompt, usable masks, and the class names of the prompt (empty if it is a caption).
    fn prompt_and_masks(
        &self,
        reference: &SampleReference,
        size: (usize, usize),
        grid: &Grid,
    ) -> Result<(String, Vec<Mask>, Vec<String>), Unusable> {
        let caption = self.caption(reference)?;
        let (masks, names) = self.masks(reference, size, grid, caption.is_none())?;
        let prompt = match caption {
            Some(caption) => caption,
            None if names.is_empty() && self.classes.is_none() => return Err("there is no caption".into()),
            None => names.join(" "),
        };
        Ok((prompt, masks, names))
    }

    /// The sample's caption: empty if the model takes no prompts, `None` if class names make the prompt.
    fn caption(&self, reference: &SampleReference) -> Result<Option<String>, Unusable> {
        if !self.config.has_prompts {
            return Ok(Some(String::new()));
        }
        let caption = match (&self.captions, &reference.caption) {
            (Some(captions), _) => {
                Some(captions.get(&reference.key)?.ok_or("the captions file has no caption of this key")?)
            }
            (None, Some(member)) => {
                let text = String::from_utf8(member.read(&reference.shard, CAPTION)?);
                Some(text.map_err(|_| "the caption is no UTF-8 text")?)
            }
            (None, None) => None,
        };
        Ok(caption.map(|caption| match self.config.format {
            DataFormat::Sa1b => first_sentences(&caption, self.config.caption_sentences),
            _ => first_sentences(&caption, 0),
        }))
    }

    /// The usable masks, and the class names that [`Mask::class`] indexes.
    fn masks(
        &self,
        reference: &SampleReference,
        size: (usize, usize),
        grid: &Grid,
        named: bool,
    ) -> Result<(Vec<Mask>, Vec<String>), Unusable> {
        match (self.config.format, &reference.annotation) {
            (DataFormat::Coco, _) => self.coco_masks(reference, size, grid),
            (DataFormat::Sa1b, Some(member)) => {
                Ok((self.run_length_masks(&member.read(&reference.shard, ANNOTATIONS)?, size, grid)?, Vec::new()))
            }
            (DataFormat::Folder, Some(member)) => {
                let map = LabelMap::decode(&member.read(&reference.shard, IMAGE_FILE)?)?;
                check_size("label map", (map.width, map.height), size)?;
                let classes = self.classes.as_ref();
                let label = |value| match classes {
                    _ if value == self.config.ignore => None,
                    Some(classes) => classes.name(value).map(|_| value),
                    None => Some(value).filter(|&value| value != 0),
                };
                Ok(self.label_masks(&map, grid, label, named))
            }
            (_, None) => Ok((Vec::new(), Vec::new())),
        }
    }

    /// sa1b: the annotated masks, by descending area.
    fn run_length_masks(&self, json: &[u8], size: (usize, usize), grid: &Grid) -> Result<Vec<Mask>, String> {
        let read: Sa1bAnnotations = serde_json::from_slice(json).map_err(|problem| format!("JSON: {problem}"))?;
        if let Some(image) = read.image {
            check_size("JSON", (image.width, image.height), size)?;
        }
        let mut found = Vec::new();
        for (index, Sa1bAnnotation { segmentation }) in read.annotations.into_iter().enumerate() {
            let runs = segmentation.check().map_err(|problem| format!("annotation {index}: {problem}"))?;
            check_size(&format!("mask of annotation {index}"), (runs.width(), runs.height()), size)?;
            found.push((runs.area_on(grid), runs));
        }
        Ok(self.largest(found, grid).into_iter().map(|runs| runs.sample(grid)).collect())
    }

    /// coco: one mask for each class in the image and the class names, both by ascending label.
    fn coco_masks(
        &self,
        reference: &SampleReference,
        size: (usize, usize),
        grid: &Grid,
    ) -> Result<(Vec<Mask>, Vec<String>), Unusable> {
        let folder = self.config.labels.as_deref().ok_or("data.labels is missing")?;
        let (path, bytes) = first_of(reference.labels.iter().map(|path| folder.join(path)))?;
        let map = LabelMap::decode(&bytes).map_err(|problem| format!("{}: {problem}", path.display()))?;
        check_size("label map", (map.width, map.height), size)?;
        let known = |label: u32| {
            let named = self.classes.as_ref().is_some_and(|classes| classes.name(label).is_some());
            (label != self.config.ignore && named).then_some(label)
        };
        let Some(panoptic) = &self.panoptic else {
            return Ok(self.label_masks(&map, grid, known, true));
        };
        let segments = panoptic.segments(&reference.key)?.ok_or("the panoptic JSON has no annotation of this image")?;
        let categories: HashMap<u32, u32> = segments.into_iter().collect();
        Ok(self.label_masks(&map, grid, |value| categories.get(&value).copied().and_then(known), true))
    }

    /// One mask for each label that `label` maps the pixels' values to. If `named`, masks are sorted by label and come
    /// with their class names, which [`Mask::class`] indexes; otherwise they are sorted by descending area.
    fn label_masks(
        &self,
        map: &LabelMap,
        grid: &Grid,
        label: impl Fn(u32) -> Option<u32>,
        named: bool,
    ) -> (Vec<Mask>, Vec<String>) {
        let mut labels = Vec::with_capacity(grid.width() * grid.height());
        let mut areas: HashMap<u32, usize> = HashMap::new();
        let mut last = (None, None);
        for y in 0..grid.height() {
            for x in 0..grid.width() {
                let (source_x, source_y) = grid.source(x, y);
                let value = map.get(source_x, source_y);
                if last.0 != Some(value) {
                    last = (Some(value), label(value));
                }
                if let Some(label) = last.1 {
                    *areas.entry(label).or_default() += 1;
                }
                labels.push(last.1);
            }
        }
        let mut found: Vec<(usize, u32)> = areas.into_iter().map(|(label, area)| (area, label)).collect();
        found.sort_unstable_by_key(|&(_, label)| label);
        let mut kept = self.largest(found, grid);
        let name = |label: u32| self.classes.as_ref().and_then(|classes| classes.name(label));
        let names: Vec<String> = if named && self.classes.is_some() {
            kept.sort_unstable();
            kept.iter().filter_map(|&label| name(label)).map(str::to_owned).collect()
        } else {
            Vec::new()
        };
        let mut masks = vec![Mask::new(grid.width(), grid.height()); kept.len()];
        let places: HashMap<u32, usize> = kept.into_iter().enumerate().map(|(place, label)| (label, place)).collect();
        for (pixel, label) in labels.into_iter().enumerate() {
            if let Some(&place) = label.and_then(|label| places.get(&label)) {
                masks[place].set(pixel % grid.width(), pixel / grid.width());
            }
        }
        if !names.is_empty() {
            masks.iter_mut().enumerate().for_each(|(place, mask)| mask.class = Some(place));
        }
        (masks, names)
    }

    /// Keeps at most `max_masks` (area, mask) pairs above the minimum area, by descending area; the sort is stable.
    fn largest<T>(&self, mut found: Vec<(usize, T)>, grid: &Grid) -> Vec<T> {
        let least = self.config.min_mask_area * (grid.width() * grid.height()) as f64;
        found.retain(|&(area, _)| area > 0 && area as f64 >= least);
        found.sort_by_key(|&(area, _)| std::cmp::Reverse(area));
        found.into_iter().take(self.config.max_masks).map(|(_, mask)| mask).collect()
    }
}

/// The first of `paths` that exists, and its bytes.
fn first_of(paths: impl Iterator<Item = PathBuf>) -> Result<(PathBuf, Vec<u8>), Unusable> {
    let mut absent = Unusable::from("there is no label map");
    for path in paths {
        match IMAGE_FILE.read(&path) {
            Ok(bytes) => return Ok((path, bytes)),
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => absent = Unusable::reading(&path, problem),
            Err(problem) => return Err(Unusable::reading(&path, problem)),
        }
    }
    Err(absent)
}

/// The cached latents and text embedding of a sample.
fn encoded(
    cache: &Cache,
    reference: &SampleReference,
    file: &[u8],
    mirrored: bool,
    prompt: &str,
) -> Result<Encoded, Unusable> {
    let Some(latents) = cache.latents(file, mirrored)? else {
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

fn check_size(what: &str, (width, height): (usize, usize), image: (usize, usize)) -> Result<(), String> {
    if (width, height) == image {
        return Ok(());
    }
    Err(format!("the {what} says {width}×{height} pixels, the image has {}×{}", image.0, image.1))
}
