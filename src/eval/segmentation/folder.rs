//! A data set for segmentation: images, their label maps, and the names of the labels.
use crate::data::labels::{Classes, LabelMap};
use crate::data::shards::split_name;
use crate::error::{Error, Result};
use crate::sample::image::read_rgb8;
use image::RgbImage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The class of pixels that do not count, and of those that a prediction leaves out.
pub const NO_CLASS: u16 = u16::MAX;

/// The class of every pixel of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentationMap {
    pub width: usize,
    pub height: usize,
    /// `[height, width]`: indices into the data set's classes, or [`NO_CLASS`].
    pub classes: Vec<u16>,
}

impl SegmentationMap {
    /// The classes that occur, ascending.
    pub fn present(&self) -> Vec<u16> {
        let mut found = BTreeSet::new();
        // Neighbours are mostly alike.
        let mut last = NO_CLASS;
        for &class in &self.classes {
            if class != last {
                last = class;
                found.insert(class);
            }
        }
        found.remove(&NO_CLASS);
        found.into_iter().collect()
    }
}

/// A class of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its number in the label maps.
    pub label: u32,
    pub name: String,
}

/// One image with its ground truth.
#[derive(Clone, Debug)]
pub struct LabelledImage {
    /// Path within the folder of images, without extension.
    pub key: String,
    pub image: RgbImage,
    pub truth: SegmentationMap,
}

struct Pair {
    key: String,
    image: PathBuf,
    labels: PathBuf,
}

/// Images with label maps, read when they are asked for, in the order of their names.
pub struct LabelledFolder {
    pairs: Vec<Pair>,
    classes_file: PathBuf,
    classes: Vec<Class>,
    /// Label to the index of its class; [`NO_CLASS`] for those that are ignored.
    class_of: BTreeMap<u32, u16>,
}

impl LabelledFolder {
    /// Pairs the JPEGs and PNGs below `images` with the PNG label maps below `labels` of the same path without
    /// extension. Labels in `ignore` do not count, and their names are no classes.
    ///
    /// # Errors
    /// A folder or the classes cannot be read, two classes have one name, an image has no label map, or there is none.
    pub fn open(images: &Path, labels: &Path, classes: &Path, ignore: &[u32]) -> Result<Self> {
        let named = Classes::read(classes)?;
        let named: Vec<Class> = named
            .iter()
            .filter(|(label, _)| !ignore.contains(label))
            .map(|(label, name)| Class { label, name: name.to_owned() })
            .collect();
        check_classes(&named).map_err(|problem| Error::file(classes, problem))?;
        let ignored = ignore.iter().map(|&label| (label, NO_CLASS));
        let class_of = (0..).zip(&named).map(|(index, class)| (class.label, index)).chain(ignored).collect();
        let mut maps = files_below(labels, &["png"])?;
        let pair = |(key, image): (String, PathBuf)| match maps.remove(&key) {
            Some(labels) => Ok(Pair { key, image, labels }),
            None => Err(Error::file(image, format!("has no label map {}", labels.join(key + ".png").display()))),
        };
        let pairs = files_below(images, &["jpg", "jpeg", "png"])?.into_iter().map(pair).collect::<Result<Vec<_>>>()?;
        if pairs.is_empty() {
            return Err(Error::file(images, "holds no JPEG or PNG"));
        }
        if let Some(map) = maps.values().next() {
            tracing::warn!("{} label maps have no image and are left out: {} …", maps.len(), map.display());
        }
        Ok(Self { pairs, classes_file: classes.to_owned(), classes: named, class_of })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The classes, ascending by label.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The file that the classes came from.
    pub fn classes_file(&self) -> &Path {
        &self.classes_file
    }

    /// Reads image `index`, which must be below [`len`](Self::len), and its label map.
    ///
    /// # Errors
    /// One of them cannot be read, their sizes differ, or a label is neither a class nor ignored.
    pub fn read(&self, index: usize) -> Result<LabelledImage> {
        let Pair { key, image: image_file, labels: labels_file } = &self.pairs[index];
        let image = read_rgb8(image_file)?;
        let failed = |problem: String| Error::file(labels_file, problem);
        let bytes = std::fs::read(labels_file).map_err(|e| failed(e.to_string()))?;
        let labels = LabelMap::decode(&bytes).map_err(failed)?;
        let (width, height) = (labels.width, labels.height);
        if (width, height) != (image.width() as usize, image.height() as usize) {
            let (of_image, path) = (format!("{}×{}", image.width(), image.height()), image_file.display());
            return Err(failed(format!("{width}×{height} pixels, but its image {path} has {of_image}")));
        }
        let truth = self.truth(&labels).map_err(failed)?;
        Ok(LabelledImage { key: key.clone(), image, truth })
    }

    fn truth(&self, labels: &LabelMap) -> Result<SegmentationMap, String> {
        let (width, height) = (labels.width, labels.height);
        let mut classes = Vec::with_capacity(width * height);
        // Neighbours are mostly alike.
        let mut last: Option<(u32, u16)> = None;
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let label = labels.get(x, y);
            let class = match last {
                Some((known, class)) if known == label => class,
                _ => *self.class_of.get(&label).ok_or_else(|| {
                    let file = self.classes_file.display();
                    format!("label {label} at x {x}, y {y} has no name in {file} and is not ignored (--ignore)")
                })?,
            };
            last = Some((label, class));
            classes.push(class);
        }
        Ok(SegmentationMap { width, height, classes })
    }
}

fn check_classes(classes: &[Class]) -> Result<(), String> {
    if classes.is_empty() {
        return Err("every class is ignored".into());
    }
    if classes.len() >= usize::from(NO_CLASS) {
        return Err(format!("{} classes, expected fewer than {NO_CLASS}", classes.len()));
    }
    let mut seen = BTreeMap::new();
    for Class { label, name } in classes {
        if let Some(other) = seen.insert(name, label) {
            return Err(format!("labels {other} and {label} are both named {name:?}: no prompt can tell them apart"));
        }
    }
    Ok(())
}

/// Files with one of `extensions` in a folder and those below it, by their path in it without extension.
fn files_below(folder: &Path, extensions: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        let folder = folder.join(&below);
        let failed = |problem| Error::file(&folder, problem);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let name = below.clone() + &name;
            if entry.file_type().map_err(failed)?.is_dir() {
                open.push(name + "/");
                continue;
            }
            let Some((key, extension)) = split_name(&name) else { continue };
            if !extensions.contains(&extension.as_str()) || !entry.path().is_file() {
                continue;
            }
            if let Some(other) = found.insert(key.to_owned(), entry.path()) {
                let problem = format!("has the same name as {}, but for the extension", other.display());
                return Err(Error::file(entry.path(), problem));
            }
        }
    }
    Ok(found)
}
