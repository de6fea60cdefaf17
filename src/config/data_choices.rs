//! The words that keys of `[data]` are chosen from.
use super::keys::choices;
use std::path::{Path, PathBuf};

choices! {
    /// Form of the training data.
    pub enum DataFormat: Copy {
        /// Tar shards as Meta ships SA-1B, with masks as run lengths; masks are matched to tokens of the caption.
        Sa1b = "sa1b",
        /// Photographs with label maps or panoptic annotations; prompts are the names of the classes, each paired with its
        /// mask.
        Coco = "coco",
        /// A folder of images with masks and captions beside them.
        Folder = "folder",
    }
}

choices! {
    /// How masks beside pictures are read.
    pub enum MaskForm: Copy {
        /// As labels with `classes` or `palette`, otherwise as the first sixteen maps look: black and white, with soft edges
        /// or without, or labels.
        Auto = "auto",
        /// One mask a picture, where a map is at least half as bright as white.
        Binary = "binary",
        /// One mask for each value but 0 and `ignore`.
        Labels = "labels",
    }
}

choices! {
    /// Which labels colours stand for.
    pub enum Palette {
        /// PASCAL VOC's colours, for the labels 0 to 20.
        Voc = "voc",
        /// Cityscapes' colours, for the training labels 0 to 18.
        Cityscapes = "cityscapes",
    } or {
        /// A JSON object from colour to label, such as `{"#8000ff": 1}`.
        File(PathBuf): "the path of a JSON file"
    }
}

choices! {
    /// What may be wrong with the data without stopping the run.
    pub enum Allowed: Copy {
        /// Photographs without a caption are left out.
        CaptionsMissing = "captions_missing",
        /// Photographs without annotations or a label map are left out.
        MasksMissing = "masks_missing",
        /// Captions, masks and annotations without their photograph are left out.
        PicturesMissing = "pictures_missing",
        /// Files that look like data and are not read are left out.
        FilesUnread = "files_unread",
        /// All captions are empty.
        CaptionsEmpty = "captions_empty",
        /// Labels without a name are no class.
        LabelsUnnamed = "labels_unnamed",
        /// `classes` has other names, or other classes, than the annotations.
        ClassNames = "class_names",
        /// None of the first masks has an effect.
        MasksUnused = "masks_unused",
    }
}

choices! {
    /// How a photograph becomes a square.
    pub enum Crop: Copy {
        /// The shorter side is scaled to the resolution, and the middle taken.
        Center = "center",
        /// The shorter side is scaled to the resolution, and any window taken with the same probability.
        Random = "random",
        /// The whole photograph is squeezed to a square.
        Stretch = "stretch",
    }
}

impl Palette {
    /// Its file, if it is one's.
    pub fn file(&self) -> Option<&Path> {
        if let Self::File(file) = self { Some(file) } else { None }
    }
}
