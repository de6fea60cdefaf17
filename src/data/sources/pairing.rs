//! Which files a sample needs, and what is left out without them.
use super::findings::Finding;
use crate::config::{Allowed, DataConfig, DataFormat};

/// Which files make up a sample.
#[derive(Debug)]
pub struct Pairing {
    pub format: DataFormat,
    /// Whether the model takes prompts.
    pub prompts: bool,
    /// Whether captions stand beside the pictures: the model takes prompts, and there is no captions file.
    pub text: bool,
    /// Whether that file is a `metadata` file that was found among the pictures, and not named.
    pub metadata: bool,
    /// Whether class names can stand in a caption's place.
    pub names: bool,
    /// coco: whether a JSON says which label map belongs to a picture.
    pub panoptic: bool,
    /// What is accepted to be left out.
    allow: Vec<Allowed>,
}

impl Pairing {
    /// The rules for `config`.
    pub fn of(config: &DataConfig) -> Self {
        Self {
            format: config.format,
            prompts: config.has_prompts,
            text: config.has_prompts && config.captions.is_none(),
            metadata: false,
            names: config.classes.is_some(),
            // Masks of `instances` have no label maps.
            panoptic: config.panoptic.is_some() || config.labels.is_none(),
            allow: config.allow.clone(),
        }
    }

    /// What a caption beside a picture is that is not read.
    pub fn unused_caption(&self) -> Finding {
        match self.prompts {
            true if self.metadata => Finding::CaptionBesideMetadata,
            true => Finding::UnusedCaption,
            false => Finding::Other,
        }
    }

    /// What a photograph lacks to be a sample, if anything.
    pub fn lacks(&self, has_caption: bool, has_annotation: bool) -> Option<Finding> {
        let is_folder = self.format == DataFormat::Folder;
        match self.format {
            DataFormat::Sa1b if !has_annotation => Some(Finding::AnnotationMissing),
            DataFormat::Coco if !has_annotation && !self.panoptic => Some(Finding::LabelMapMissing),
            DataFormat::Coco => None,
            // Without masks there are no names either.
            _ if self.text && !has_caption && !(is_folder && self.names && has_annotation) => {
                Some(Finding::CaptionMissing)
            }
            _ => None,
        }
    }

    /// Whether the user accepts that this is left out.
    pub fn leaves_out(&self, lacked: Finding) -> bool {
        lacked.description().allowed.is_none_or(|allowed| self.allow.contains(&allowed))
    }
}
