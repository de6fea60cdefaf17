//! The masks of a sample: from run lengths, label maps, panoptic segments or instances to the square of training.
use super::Mask;
use super::codec::crop::Grid;
use super::codec::labels::{self, Classes, LabelMap};
use super::codec::palette::Colours;
use super::codec::photograph::PictureHeader;
use super::codec::stored_mask::{MaskParts, StoredMask};
use super::sources::annotations::{Annotations, Instance, OfPicture, PanopticSegments};
use super::sources::shards::SampleReference;
use super::sources::unusable::Unusable;
use crate::config::{Allowed, DataConfig, DataFormat};
use crate::system::limits::{ANNOTATIONS, IMAGE_FILE};
use crate::system::utf8;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What a sample's annotation says: the usable masks and the class names that [`Mask::class`] indexes.
#[derive(Default)]
pub struct Masks {
    /// By ascending label if they have names, otherwise by descending area.
    pub masks: Vec<Mask>,
    /// One name for each mask, or none.
    pub names: Vec<String>,
    pub fates: MaskCounts,
}

/// What became of masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaskCounts {
    /// Usable ones that do not cover the whole picture.
    pub used: u64,
    /// Usable ones that cover the whole picture.
    pub full: u64,
    /// Those without a pixel in the square of training.
    pub empty: u64,
    /// Those below `data.min_mask_area`.
    pub small: u64,
    /// Those behind the largest `data.max_masks`.
    pub beyond: u64,
    /// Label maps of which nothing is left but pixels of `data.ignore`, and background.
    pub ignored: u64,
    /// Label maps of which nothing is left but labels without a name.
    pub unnamed: u64,
    /// Pictures without an annotation, or with one that has no mask.
    pub absent: u64,
}

impl MaskCounts {
    /// Whether a mask is usable.
    pub fn has_mask(&self) -> bool {
        self.used + self.full > 0
    }
}

/// Reads masks; shared by all workers.
pub struct MaskReader {
    config: DataConfig,
    /// coco: those of `data.panoptic` or of `data.instances`.
    pub annotations: Option<Annotations>,
    /// The names of labels.
    pub classes: Option<Classes>,
    colours: Option<Colours>,
    /// Whether the label maps of folders are black and white.
    pub is_binary: bool,
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
    segmentation: StoredMask,
}

/// What a value of a label map stands for.
#[derive(Clone, Copy, PartialEq)]
enum Meaning {
    Label(u32),
    Ignored,
    Unnamed,
    /// No mask, and nothing to say about it.
    Background,
}

impl MaskReader {
    /// Reads the class list and the annotations that `config` names. Label maps of folders are black and white, or labels.
    ///
    /// # Errors
    /// A file cannot be read; the format needs one that is not configured; the class list contradicts the annotations.
    pub fn open(config: &DataConfig, is_binary: bool) -> Result<Self> {
        let is_coco = config.format == DataFormat::Coco;
        let annotations = match (&config.panoptic, &config.instances) {
            (_, Some(file)) if is_coco => Some(Annotations::read::<Instance>(file)?),
            (Some(file), None) if is_coco => Some(Annotations::read::<PanopticSegments>(file)?),
            _ => None,
        };
        let categories = annotations.as_ref().map(|annotations| &annotations.categories);
        let classes = match &config.classes {
            Some(path) => {
                let classes = Classes::read(path)?;
                if let Some(categories) = categories.filter(|_| !config.allow.contains(&Allowed::ClassNames)) {
                    let differ =
                        |problem| Error::file(path, format!("{problem} ({})", annotations_file(config).display()));
                    classes.check_equal(categories).map_err(differ)?;
                }
                Some(classes)
            }
            None => categories.cloned(),
        };
        if is_coco && config.instances.is_none() && config.labels.is_none() {
            return Err(Error::Usage("data.labels is missing: the coco format needs the folder of label maps".into()));
        }
        if is_coco && classes.is_none() {
            let hint = "data.classes is missing: label maps need the names of their labels";
            return Err(Error::Usage(format!("{hint} (panoptic PNGs: data.panoptic)")));
        }
        let allows_unnamed = config.allow.contains(&Allowed::LabelsUnnamed);
        if let (Some(Annotations { used, .. }), Some(classes), false) = (&annotations, &classes, allows_unnamed)
            && let Some((category, image)) = used.iter().find(|(category, _)| classes.name(**category).is_none())
        {
            let accept = "data.allow = [\"labels_unnamed\"] leaves such masks out";
            let problem =
                format!("category {category}, of image {image}, has no name in {}", names_file(config).display());
            return Err(Error::file(annotations_file(config), format!("{problem}; {accept}")));
        }
        if let Some(classes) = &classes {
            classes.check_names().map_err(|problem| Error::file(names_file(config), problem))?;
        }
        let colours = config.palette.as_ref().map(|palette| Colours::of(palette, config.ignore)).transpose()?;
        Ok(Self { config: config.clone(), annotations, classes, colours, is_binary })
    }

    /// The masks of the sample of `reference`, of a picture with `header`, at the points of `grid`. `key` is the picture's
    /// in the annotations. With `named`, labels that have names give them to their masks.
    ///
    /// # Errors
    /// The annotation is broken, or says what no sample can mean.
    pub fn read(
        &self,
        reference: &SampleReference,
        key: &str,
        header: &PictureHeader,
        grid: &Grid,
        named: bool,
    ) -> Result<Masks, Unusable> {
        match (self.config.format, &reference.annotation) {
            (DataFormat::Coco, _) => self.coco(reference, key, header, grid),
            (DataFormat::Sa1b, Some(member)) => {
                let json = utf8::text(member.read(&reference.shard, ANNOTATIONS)?)?;
                Ok(self.sa1b(&json, header, grid)?)
            }
            (DataFormat::Folder, Some(member)) => {
                let path = member.path().unwrap_or(reference.shard.path());
                let map = label_map(path, &member.read(&reference.shard, IMAGE_FILE)?, header)?;
                self.label_masks(path, &map, grid, self.meaning_in(&map), named)
            }
            (DataFormat::Folder, None) if !reference.masks.is_empty() => self.separate(reference, header, grid),
            (_, None) => Ok(Masks { fates: MaskCounts { absent: 1, ..MaskCounts::default() }, ..Masks::default() }),
        }
    }

    /// What a label of a map means, which is background where it is 0 and has no name.
    fn meaning(&self, label: u32) -> Meaning {
        match label == self.config.ignore {
            true => Meaning::Ignored,
            false => self.class(label),
        }
    }

    /// What a label means that is not ignored: `data.ignore` is a number of label maps, and some lists of categories have it.
    fn class(&self, label: u32) -> Meaning {
        match &self.classes {
            Some(classes) if classes.name(label).is_some() => Meaning::Label(label),
            None if label != 0 => Meaning::Label(label),
            Some(_) if label != 0 => Meaning::Unnamed,
            _ => Meaning::Background,
        }
    }

    /// What the values of a label map mean; nothing where a colour stands for no label.
    fn meaning_in<'a>(&'a self, map: &'a LabelMap) -> impl Fn(u32) -> Option<Meaning> + 'a {
        let is_white = self.is_binary.then(|| map.is_white());
        move |value| {
            let [red, green, blue, _] = value.to_le_bytes();
            match (&is_white, &self.colours) {
                (Some(is_white), _) => Some(if is_white(value) { Meaning::Label(1) } else { Meaning::Background }),
                _ if map.channels < 3 => Some(self.meaning(value)),
                (None, Some(colours)) => colours.label(value).map(|label| self.meaning(label)),
                (None, None) => (red == green && green == blue).then(|| self.meaning(u32::from(red))),
            }
        }
    }

    /// What is wrong with a colour that stands for no label.
    fn no_label(&self, colour: u32, (x, y): (usize, usize)) -> String {
        let [red, green, blue, _] = colour.to_le_bytes();
        let table = match self.colours.is_some() {
            true => "has no label in data.palette",
            false => "is no label: data.palette says which labels the colours of RGB maps stand for",
        };
        format!("the colour #{red:02x}{green:02x}{blue:02x} at x {x}, y {y} {table}")
    }

    /// folder: black-and-white masks in files of their own, by descending area.
    fn separate(&self, reference: &SampleReference, header: &PictureHeader, grid: &Grid) -> Result<Masks, Unusable> {
        let mut found = Vec::new();
        for member in &reference.masks {
            let bytes = member.read(&reference.shard, IMAGE_FILE)?;
            let map = label_map(member.path().unwrap_or(reference.shard.path()), &bytes, header)?;
            let is_white = map.is_white();
            let mut mask = Mask::new(grid.width(), grid.height());
            for (y, x) in (0..grid.height()).flat_map(|y| (0..grid.width()).map(move |x| (y, x))) {
                let (source_x, source_y) = grid.source(x, y);
                if is_white(map.get(source_x, source_y)) {
                    mask.set(x, y);
                }
            }
            found.push((mask.area(), mask));
        }
        let mut fates = MaskCounts::default();
        let masks = self.largest(found, grid, &mut fates);
        Ok(Masks { masks, names: Vec::new(), fates })
    }

    /// sa1b: the annotated masks, by descending area.
    fn sa1b(&self, json: &str, header: &PictureHeader, grid: &Grid) -> Result<Masks, String> {
        let read: Sa1bAnnotations = serde_json::from_str(json).map_err(|problem| format!("JSON: {problem}"))?;
        let size = read.image.map_or(header.size, |image| (image.width, image.height));
        turns("JSON", size, header)?;
        let mut fates = MaskCounts::default();
        let mut found = Vec::new();
        for (index, Sa1bAnnotation { segmentation }) in read.annotations.into_iter().enumerate() {
            let parts = parts(&segmentation, index, size, header)?;
            found.push((parts.area_on(grid), parts));
        }
        fates.absent += u64::from(found.is_empty());
        let masks = self.largest(found, grid, &mut fates).into_iter().map(|parts| parts.sample(grid)).collect();
        Ok(Masks { masks, names: Vec::new(), fates })
    }

    /// coco: one mask for each class in the picture and the class names, both by ascending label.
    fn coco(
        &self,
        reference: &SampleReference,
        key: &str,
        header: &PictureHeader,
        grid: &Grid,
    ) -> Result<Masks, Unusable> {
        if let (Some(instances), Some(_)) = (&self.annotations, &self.config.instances) {
            let found = instances.of(key)?.ok_or("the instances JSON does not have this image")?;
            return self.instance_masks(&found, header, grid);
        }
        let folder = self.config.labels.as_deref().ok_or("data.labels is missing")?;
        let Some(panoptic) = &self.annotations else {
            let (path, map) = first_map(reference.labels.iter().map(|path| folder.join(path)), header)?;
            return self.label_masks(&path, &map, grid, self.meaning_in(&map), true);
        };
        let picture = panoptic.segments(key)?.ok_or("the panoptic JSON has no annotation of this image")?;
        let beside = reference.labels.iter().filter_map(|path| path.parent()).chain([Path::new("")]);
        let paths = beside.map(|parent| folder.join(parent).join(&picture.file_name));
        let (path, map) = first_map(paths, header)?;
        let categories = picture.categories();
        let meaning = |segment: u32| match categories.get(&segment) {
            Some(&category) => Some(self.class(category)),
            None => (segment == labels::VOID).then_some(Meaning::Background),
        };
        self.label_masks(&path, &map, grid, meaning, true)
    }

    /// One mask for each class of the instances: their union, crowds included, as pycocotools' `annToMask` draws them.
    fn instance_masks(
        &self,
        found: &OfPicture<Instance>,
        header: &PictureHeader,
        grid: &Grid,
    ) -> Result<Masks, Unusable> {
        let size = found.size.unwrap_or(header.size);
        turns("instances JSON", size, header)?;
        let mut fates = MaskCounts::default();
        let mut of_class: BTreeMap<u32, Mask> = BTreeMap::new();
        for (index, Instance { category, mask }) in found.annotations.iter().enumerate() {
            let parts = parts(mask, index, size, header)?;
            match self.class(*category) {
                Meaning::Label(label) => {
                    let mask = of_class.entry(label).or_insert_with(|| Mask::new(grid.width(), grid.height()));
                    parts.add_to(mask, grid);
                }
                Meaning::Unnamed => self.refuse_unnamed(names_file(&self.config), &format!("category {category}"))?,
                Meaning::Ignored | Meaning::Background => {}
            }
        }
        let found = of_class.into_iter().map(|(label, mask)| (mask.area(), (label, mask))).collect::<Vec<_>>();
        fates.absent += u64::from(found.is_empty());
        let mut kept = self.largest(found, grid, &mut fates);
        kept.sort_unstable_by_key(|(label, _)| *label);
        let names = kept.iter().filter_map(|(label, _)| self.name(*label)).collect();
        let mut masks: Vec<Mask> = kept.into_iter().map(|(_, mask)| mask).collect();
        masks.iter_mut().enumerate().for_each(|(place, mask)| mask.class = Some(place));
        Ok(Masks { masks, names, fates })
    }

    /// One mask for each label that the pixels' values mean. If `named`, masks are sorted by label and come with their
    /// class names, which [`Mask::class`] indexes; otherwise they are sorted by descending area.
    fn label_masks(
        &self,
        file: &Path,
        map: &LabelMap,
        grid: &Grid,
        meaning: impl Fn(u32) -> Option<Meaning>,
        named: bool,
    ) -> Result<Masks, Unusable> {
        let pixels = self.meanings(file, map, grid, meaning)?;
        let mut areas: BTreeMap<u32, usize> = BTreeMap::new();
        for pixel in &pixels {
            if let Meaning::Label(label) = pixel {
                *areas.entry(*label).or_default() += 1;
            }
        }
        let mut fates = MaskCounts::default();
        if areas.is_empty() {
            match (pixels.contains(&Meaning::Ignored), pixels.contains(&Meaning::Unnamed)) {
                (true, _) => fates.ignored += 1,
                (false, true) => fates.unnamed += 1,
                (false, false) => fates.absent += 1,
            }
        }
        let found = areas.into_iter().map(|(label, area)| (area, label)).collect();
        let mut kept: Vec<u32> = self.largest(found, grid, &mut fates);
        let mut names = Vec::new();
        if named && self.classes.is_some() {
            kept.sort_unstable();
            names = kept.iter().filter_map(|&label| self.name(label)).collect();
        }
        let mut masks = vec![Mask::new(grid.width(), grid.height()); kept.len()];
        let places: BTreeMap<u32, usize> = kept.into_iter().enumerate().map(|(place, label)| (label, place)).collect();
        for (number, pixel) in pixels.into_iter().enumerate() {
            if let Meaning::Label(label) = pixel
                && let Some(&place) = places.get(&label)
            {
                masks[place].set(number % grid.width(), number / grid.width());
            }
        }
        if !names.is_empty() {
            masks.iter_mut().enumerate().for_each(|(place, mask)| mask.class = Some(place));
        }
        Ok(Masks { masks, names, fates })
    }

    /// What the map says at each point of `grid`, `[height, width]`.
    fn meanings(
        &self,
        file: &Path,
        map: &LabelMap,
        grid: &Grid,
        meaning: impl Fn(u32) -> Option<Meaning>,
    ) -> Result<Vec<Meaning>, Unusable> {
        let mut pixels = Vec::with_capacity(grid.width() * grid.height());
        // Neighbouring pixels are mostly equal.
        let mut last: Option<(u32, Meaning)> = None;
        for (y, x) in (0..grid.height()).flat_map(|y| (0..grid.width()).map(move |x| (y, x))) {
            let (x, y) = grid.source(x, y);
            let value = map.get(x, y);
            let means = match last {
                Some((known, means)) if known == value => means,
                _ => {
                    let place = || format!("label {value} at x {x}, y {y}");
                    let means = meaning(value).ok_or_else(|| match self.annotations {
                        Some(_) => format!("{}: {} {}", file.display(), place(), labels::NO_SEGMENT).into(),
                        None => Unusable::Fatal(Error::file(file, self.no_label(value, (x, y)))),
                    })?;
                    if means == Meaning::Unnamed {
                        self.refuse_unnamed(file, &place())?;
                    }
                    means
                }
            };
            last = Some((value, means));
            pixels.push(means);
        }
        Ok(pixels)
    }

    fn name(&self, label: u32) -> Option<String> {
        self.classes.as_ref().and_then(|classes| classes.name(label)).map(str::to_owned)
    }

    /// # Errors
    /// Ends the run, unless it allows labels without names.
    fn refuse_unnamed(&self, file: &Path, what: &str) -> Result<()> {
        match self.config.allow.contains(&Allowed::LabelsUnnamed) {
            true => Ok(()),
            false => Err(Error::file(file, format!("{what} {}", labels::no_name(names_file(&self.config))))),
        }
    }

    /// Keeps at most `max_masks` (area, mask) pairs above the minimum area, by descending area; the sort is stable.
    fn largest<T>(&self, mut found: Vec<(usize, T)>, grid: &Grid, fates: &mut MaskCounts) -> Vec<T> {
        let whole = grid.width() * grid.height();
        let least = self.config.min_mask_area * whole as f64;
        let drop = |found: &mut Vec<(usize, T)>, keep: &dyn Fn(usize) -> bool| {
            let before = found.len();
            found.retain(|(area, _)| keep(*area));
            (before - found.len()) as u64
        };
        fates.empty += drop(&mut found, &|area| area > 0);
        fates.small += drop(&mut found, &|area| area as f64 >= least);
        found.sort_by_key(|&(area, _)| std::cmp::Reverse(area));
        fates.beyond += found.len().saturating_sub(self.config.max_masks) as u64;
        found.truncate(self.config.max_masks);
        fates.full += found.iter().filter(|(area, _)| *area == whole).count() as u64;
        fates.used += found.iter().filter(|(area, _)| *area < whole).count() as u64;
        found.into_iter().map(|(_, mask)| mask).collect()
    }
}

/// The file that names the classes.
fn names_file(config: &DataConfig) -> &Path {
    config.classes.as_deref().unwrap_or_else(|| annotations_file(config))
}

/// The JSON of annotations.
fn annotations_file(config: &DataConfig) -> &Path {
    config.panoptic.as_deref().or(config.instances.as_deref()).unwrap_or(Path::new(""))
}

/// The checked parts of annotation `index` of a picture that the annotations give this `size`.
fn parts(mask: &StoredMask, index: usize, size: (usize, usize), header: &PictureHeader) -> Result<MaskParts, String> {
    let failed = |problem: String| format!("annotation {index}: {problem}");
    let parts = mask.parts(size).map_err(failed)?;
    match turns(&format!("mask of annotation {index}"), parts.size().unwrap_or(size), header)? {
        true => parts.upright(header.orientation).map_err(failed),
        false => Ok(parts),
    }
}

/// The label map at the first of `paths` that exists.
fn first_map(paths: impl Iterator<Item = PathBuf>, header: &PictureHeader) -> Result<(PathBuf, LabelMap), Unusable> {
    let mut absent = Unusable::from("there is no label map");
    for path in paths {
        match IMAGE_FILE.read(&path) {
            Ok(bytes) => {
                let map = label_map(&path, &bytes, header)?;
                return Ok((path, map));
            }
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => absent = Unusable::reading(&path, problem),
            Err(problem) => return Err(Unusable::reading(&path, problem)),
        }
    }
    Err(absent)
}

/// The label map `file` of these bytes, as it lies over the upright picture.
fn label_map(file: &Path, bytes: &[u8], header: &PictureHeader) -> Result<LabelMap, String> {
    let map = LabelMap::decode(bytes).map_err(|problem| format!("{}: {problem}", file.display()))?;
    let turned = turns("label map", (map.width, map.height), header)?;
    Ok(if turned { map.upright(header.orientation) } else { map })
}

/// Whether something of this size is turned as the picture is ([`PictureHeader::turns_mask`]).
fn turns(what: &str, size: (usize, usize), header: &PictureHeader) -> Result<bool, String> {
    let mismatch = || {
        let ((width, height), (across, down)) = (size, header.size);
        format!("the {what} says {width}×{height} pixels, the image has {across}×{down}")
    };
    header.turns_mask(size).ok_or_else(mismatch)
}
