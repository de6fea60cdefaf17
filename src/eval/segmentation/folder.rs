//! A segmentation data set: images, label maps, class names.
use super::data_set::{Files, SegmentationDataSet};
use crate::config::{EvalConfig, RunConfig};
use crate::data::codec::labels::{self, Classes, LabelMap};
use crate::data::sources::annotations::{Annotations, PanopticSegments};
use crate::sample::image::read_with_header;
use crate::system::error::{Error, Result};
use crate::system::limits::{IMAGE_FILE, LIST};
use crate::system::paths::is_file;
use image::RgbImage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The class of pixels that do not count, or that a prediction leaves out.
pub const NO_CLASS: u16 = u16::MAX;

/// The class of each pixel of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentationMap {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`: indices into the data set's classes, or [`NO_CLASS`].
    pub classes: Vec<u16>,
}

impl SegmentationMap {
    /// The classes that occur, ascending.
    pub fn present(&self) -> Vec<u16> {
        // Neighbouring pixels are mostly equal.
        let mut found: BTreeSet<u16> = self.classes.chunk_by(|a, b| a == b).map(|equal| equal[0]).collect();
        found.remove(&NO_CLASS);
        found.into_iter().collect()
    }
}

/// A class of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its value in the label maps.
    pub label: u32,
    /// Name, as prompts have it.
    pub name: String,
}

/// An image with its ground truth.
#[derive(Clone, Debug)]
pub struct LabelledImage {
    /// Path below the image folder, without extension.
    pub key: String,
    /// The image at its own size, RGB.
    pub image: RgbImage,
    /// The class of every pixel.
    pub truth: SegmentationMap,
}

struct Pair {
    key: String,
    image: PathBuf,
    labels: PathBuf,
}

/// Images with label maps, read on demand, in the order of their names or of the data set's list.
pub struct LabelledFolder {
    pairs: Vec<Pair>,
    /// The file with the class names.
    pub classes_file: PathBuf,
    /// The classes by ascending label.
    pub classes: Vec<Class>,
    /// Label to class index; [`NO_CLASS`] for ignored labels.
    class_of: BTreeMap<u32, u16>,
    /// The class of labels without a name; if absent, they are an error.
    class_of_others: Option<u16>,
    /// Maps segment ids to labels, if the label maps hold segment ids.
    panoptic: Option<Annotations>,
    /// The label of pixels without class.
    pub label_of_none: u32,
}

impl LabelledFolder {
    /// Pairs the pictures below `images` with the PNG label maps below `labels` by relative path without
    /// extension. Labels in `ignore` do not count, and their names are not classes.
    ///
    /// # Errors
    /// Those of [`of`](Self::of).
    pub fn open(images: &Path, labels: &Path, classes: &Path, ignore: &[u32]) -> Result<Self> {
        Self::of(&SegmentationDataSet::folders(images, labels, classes, ignore))
    }

    /// The labelled images of a run's `[eval]`, if configured.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn of_run(config: &RunConfig, eval: &EvalConfig) -> Result<Option<Self>> {
        let (Some(labels), Some(classes)) = (&eval.labels, &eval.classes) else { return Ok(None) };
        Self::open(&eval.images, labels, classes, &[config.data.ignore]).map(Some)
    }

    /// Opens a data set.
    ///
    /// # Errors
    /// A folder, the list or the classes cannot be read; two classes have the same name; an image has no label map; a
    /// listed image is missing; there is no image.
    pub fn of(data_set: &SegmentationDataSet) -> Result<Self> {
        let SegmentationDataSet { images, labels, ignore, merge, .. } = data_set;
        let panoptic = match &data_set.panoptic {
            Some(file) if !is_file(file)? => {
                return Err(data_set.missing(file, "its panoptic annotations", "no such file"));
            }
            Some(file) => Some(Annotations::read::<PanopticSegments>(file)?),
            None => None,
        };
        let read = data_set.classes.as_deref().map(Classes::read).transpose()?;
        let (named, classes_file) = match (&read, &panoptic) {
            (Some(read), _) => (read, data_set.classes.clone().unwrap_or_default()),
            (None, Some(panoptic)) => (&panoptic.categories, data_set.panoptic.clone().unwrap_or_default()),
            (None, None) => return Err(Error::Failed("a data set without classes".into())),
        };
        let named: Vec<Class> = named
            .iter()
            .filter(|(label, _)| !ignore.contains(label))
            .map(|(label, name)| Class { label, name: name.to_owned() })
            .collect();
        check_classes(&named).map_err(|problem| Error::file(&classes_file, problem))?;
        let ignored = ignore.iter().map(|&label| (label, NO_CLASS));
        let by_label: BTreeMap<u32, u16> =
            (0..).zip(&named).map(|(index, class)| (class.label, index)).chain(ignored).collect();
        let class = |label: u32, what: String| {
            let problem = || Error::file(&classes_file, format!("has no label {label}, which {what}"));
            by_label.get(&label).copied().ok_or_else(problem)
        };
        let class_of_others = match (data_set.ignore_others, data_set.others) {
            (true, _) => Some(NO_CLASS),
            (false, label) => label.map(|label| class(label, "all others stand for".into())).transpose()?,
        };
        let mut class_of = by_label.clone();
        for (label, into) in merge {
            class_of.insert(*label, class(*into, format!("{label} is merged into"))?);
        }
        let images = images.find_as(data_set, "images")?;
        let mut maps = labels.find_as(data_set, "label maps")?;
        if let Some(panoptic) = &panoptic {
            // The JSON says which PNG belongs to which image.
            for key in images.keys() {
                let found = panoptic.segments(key).map_err(|problem| Error::Failed(problem.to_string()))?;
                maps.extend(found.map(|segments| (key.clone(), labels.folder.join(segments.file_name))));
            }
        }
        Ok(Self {
            pairs: pairs(data_set, images, maps)?,
            classes_file,
            classes: named,
            class_of,
            class_of_others,
            panoptic,
            label_of_none: ignore.first().copied().unwrap_or(255),
        })
    }

    /// Number of images.
    pub fn count(&self) -> usize {
        self.pairs.len()
    }

    /// The images' paths below the image folder, without extension.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|pair| pair.key.as_str())
    }

    /// Reads image `index`, which must be less than [`count`](Self::count), and its label map.
    ///
    /// # Errors
    /// One of them cannot be read, their sizes differ, or a label is neither a class nor ignored.
    pub fn read(&self, index: usize) -> Result<LabelledImage> {
        let Pair { key, image: image_file, labels: labels_file } = &self.pairs[index];
        let (image, header) = read_with_header(image_file)?;
        let failed = |problem: String| Error::file(labels_file, problem);
        let bytes = IMAGE_FILE.read(labels_file).map_err(|e| failed(e.to_string()))?;
        let mut labels = LabelMap::decode(&bytes).map_err(failed)?;
        let (width, height) = (labels.width, labels.height);
        match header.turns_mask((width, height)) {
            Some(false) => (),
            Some(true) => labels = labels.upright(header.orientation),
            None => {
                let (of_image, path) = (format!("{}×{}", image.width(), image.height()), image_file.display());
                return Err(failed(format!("{width}×{height} pixels, but its image {path} has {of_image}")));
            }
        }
        let segments = match &self.panoptic {
            Some(panoptic) => {
                let found = panoptic.segments(key).map_err(|problem| failed(problem.to_string()))?;
                let found = found.ok_or_else(|| failed("the panoptic annotations do not have its image".into()))?;
                Some(found.categories())
            }
            None => None,
        };
        let truth = self.truth(&labels, segments.as_ref()).map_err(failed)?;
        Ok(LabelledImage { key: key.clone(), image, truth })
    }

    fn truth(&self, labels: &LabelMap, segments: Option<&BTreeMap<u32, u32>>) -> Result<SegmentationMap, String> {
        let (width, height) = (labels.width, labels.height);
        let mut classes = Vec::with_capacity(width * height);
        // Neighbouring pixels are mostly equal.
        let mut last: Option<(u32, u16)> = None;
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let label = labels.get(x, y);
            let class = match last {
                Some((known, class)) if known == label => class,
                _ => {
                    self.class(label, segments).map_err(|problem| format!("label {label} at x {x}, y {y} {problem}"))?
                }
            };
            last = Some((label, class));
            classes.push(class);
        }
        Ok(SegmentationMap { width, height, classes })
    }

    /// The class of a label, or, with `segments`, of a segment id.
    fn class(&self, label: u32, segments: Option<&BTreeMap<u32, u32>>) -> Result<u16, String> {
        let label = match segments {
            Some(segments) if label != labels::VOID => *segments.get(&label).ok_or(labels::NO_SEGMENT)?,
            _ => label,
        };
        let known = self.class_of.get(&label).copied().or(self.class_of_others);
        known.ok_or_else(|| labels::no_name(&self.classes_file))
    }
}

/// Pairs images with their label maps.
fn pairs(
    data_set: &SegmentationDataSet,
    mut images: BTreeMap<String, PathBuf>,
    mut maps: BTreeMap<String, PathBuf>,
) -> Result<Vec<Pair>> {
    let SegmentationDataSet { labels, list, .. } = data_set;
    let mut pair = |key: String, image: PathBuf| match maps.remove(&key) {
        Some(labels) => Ok(Pair { key, image, labels }),
        None => {
            let expected = labels.folder.join(key + &labels.suffixes[0]);
            Err(Error::file(image, format!("has no label map {}", expected.display())))
        }
    };
    let Some(list) = list else {
        let pairs = images.into_iter().map(|(key, image)| pair(key, image)).collect::<Result<Vec<_>>>()?;
        if let Some(map) = maps.values().next() {
            tracing::warn!("{} label maps have no image and are left out: {} …", maps.len(), map.display());
        }
        return Ok(pairs);
    };
    let text = LIST.read_text(list).map_err(|problem| data_set.missing(list, "a list of images", problem))?;
    let lines = (1..).zip(text.lines()).filter_map(|(line, text)| Some((line, text.split_whitespace().next()?)));
    let pairs = lines.map(|(line, key)| match images.remove(key) {
        Some(image) => pair(key.to_owned(), image),
        None => {
            let folder = data_set.images.folder.display();
            Err(Error::file(list, format!("line {line}: the image {key} is not in {folder}, or is listed twice")))
        }
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    if pairs.is_empty() {
        return Err(Error::file(list, "lists no image"));
    }
    Ok(pairs)
}

impl Files {
    /// The files, of which there must be at least one.
    fn find_as(&self, data_set: &SegmentationDataSet, what: &str) -> Result<BTreeMap<String, PathBuf>> {
        let expected = format!("{what} ({})", self.pattern());
        if let Err(problem) = std::fs::read_dir(&self.folder) {
            return Err(data_set.missing(&self.folder, &expected, problem));
        }
        match self.find()? {
            found if found.is_empty() => {
                Err(data_set.missing(&self.folder, &expected, format!("holds no {}", self.pattern())))
            }
            found => Ok(found),
        }
    }
}

fn check_classes(classes: &[Class]) -> Result<(), String> {
    if classes.is_empty() {
        return Err("every class is ignored".into());
    }
    if classes.len() >= usize::from(NO_CLASS) {
        return Err(format!("{} classes, expected fewer than {NO_CLASS}", classes.len()));
    }
    Classes::new(classes.iter().map(|class| (class.label, class.name.clone()))).check_names()
}
