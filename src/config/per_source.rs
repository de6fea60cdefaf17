//! The settings of each source: those of `[data]`, and over them those of its table in `[[data.sources]]`.
use super::data::{DataConfig, USUAL_IGNORE};
use super::data_choices::{DataFormat, MaskForm};
use super::sources::SourceConfig;
use std::path::PathBuf;

impl DataConfig {
    /// The settings of each source: those of `data.source` together, then each of `data.sources`, with how often its
    /// samples come in an epoch.
    pub fn per_source(&self) -> Vec<(Self, f64)> {
        let own = Self { sources: Vec::new(), ..self.clone() };
        let tables = self.sources.iter().map(|source| (source.over(self), f64::from(source.repeats) * source.weight));
        Some((own, 1.0)).filter(|_| !self.source.is_empty()).into_iter().chain(tables).collect()
    }
}

impl SourceConfig {
    /// The settings `data` with these in their place. Of `instances` and `labels`, which exclude each other, its own counts.
    pub(super) fn over(&self, data: &DataConfig) -> DataConfig {
        let or = |own: &Option<PathBuf>, of_data: &Option<PathBuf>| own.clone().or_else(|| of_data.clone());
        let format = self.format.unwrap_or(data.format);
        let (is_coco, is_sa1b) = (format == DataFormat::Coco, format == DataFormat::Sa1b);
        let has_labels = self.labels.is_some() || self.panoptic.is_some();
        let panoptic = or(&self.panoptic, &data.panoptic).filter(|_| is_coco && self.instances.is_none());
        let instances = or(&self.instances, &data.instances).filter(|_| is_coco && !has_labels);
        let has_colours = !is_sa1b && panoptic.is_none() && instances.is_none();
        let palette = self.palette.clone().or_else(|| data.palette.clone().filter(|_| has_colours));
        let masks = if format == DataFormat::Folder { data.masks } else { MaskForm::Auto };
        DataConfig {
            sources: Vec::new(),
            source: vec![self.path.clone()],
            format,
            captions: or(&self.captions, &data.captions),
            labels: or(&self.labels, &data.labels).filter(|_| is_coco && self.instances.is_none()),
            panoptic,
            instances,
            classes: or(&self.classes, &data.classes).filter(|_| !is_sa1b),
            masks: self.masks.unwrap_or(masks),
            palette,
            ignore: self.ignore.unwrap_or(data.ignore),
            ..data.clone()
        }
    }

    /// What is missing beside the settings `data`, or does not go together.
    pub(super) fn problems(&self, data: &DataConfig) -> Vec<String> {
        let settings = self.over(data);
        let format = settings.format;
        let (coco, folder) = (format == DataFormat::Coco, format == DataFormat::Folder);
        let mut problems = Vec::new();
        let is_named = settings.panoptic.is_some() || settings.instances.is_some();
        let has_names = settings.classes.is_some() || is_named;
        let needs = [("labels", settings.labels.is_some() || settings.instances.is_some()), ("classes", has_names)];
        let missing = needs.iter().filter(|(_, given)| coco && !given);
        problems.extend(missing.map(|(key, _)| format!("{key} is missing, which format = \"coco\" needs")));
        for (key, is_given, suits, formats) in [
            ("labels", self.labels.is_some(), coco, "\"coco\""),
            ("panoptic", self.panoptic.is_some(), coco, "\"coco\""),
            ("instances", self.instances.is_some(), coco, "\"coco\""),
            ("classes", self.classes.is_some(), coco || folder, "\"coco\" or \"folder\""),
            ("palette", self.palette.is_some(), coco || folder, "\"coco\" or \"folder\""),
            ("masks", self.masks.is_some_and(|form| form != MaskForm::Auto), folder, "\"folder\""),
        ] {
            if is_given && !suits {
                problems.push(format!("{key} is for format = {formats} only"));
            }
        }
        if self.instances.is_some() && (self.labels.is_some() || self.panoptic.is_some()) {
            problems.push("labels and instances are two kinds of masks; choose one".into());
        }
        if self.palette.is_some() && is_named {
            problems.push("palette is for label maps of colours, which panoptic and instances have none of".into());
        }
        if is_named && self.ignore.is_some_and(|label| label != USUAL_IGNORE) {
            problems.push("ignore is for label maps: the categories of panoptic and instances are classes".into());
        }
        if settings.masks == MaskForm::Binary && (self.classes.is_some() || self.palette.is_some()) {
            problems.push("masks = \"binary\" has no labels, which classes and palette are for".into());
        }
        problems
    }
}
