//! The sections `[data]` and `[scenes]`: what is trained on.
use super::data_choices::{Allowed, Crop, DataFormat, MaskForm, Palette};
use super::document::TomlValue;
use super::keys::keys;
use super::model::ModelConfig;
use super::reader::Reader;
use super::rule::{follows, optional, required, usual};
use super::setting::{Check, Setting, at_least, check, is_distinct, is_not_empty, is_path, not_empty, within};
use super::sources::SourceConfig;
use image::Rgb;
use serde::{Serialize, Serializer};
use std::path::PathBuf;

keys! {
    /// Images, captions and masks.
    [data] pub struct DataConfig(reader, model: &ModelConfig) {
        /// Form of the data.
        format: DataFormat = usual(DataFormat::Sa1b);
        /// Tar shards or folders of images; each entry may be a pattern. sa1b: also `s3://`, `gs://` and `https://`.
        source: Vec<String> = if reader.given("data.sources") { usual(Vec::new()) } else { required(SOURCE_EXAMPLE) },
            sources(reader.given("data.sources"));
        /// Sources with settings of their own, as tables: `[[data.sources]]` with `path` and, where wanted, `repeats` (how
        /// often its samples come in an epoch), `weight` (the share of them that an epoch takes, other ones in every epoch;
        /// above 1 some come again), `format`, `captions`, `labels`, `panoptic`, `instances`, `classes`, `masks`, `palette` and
        /// `ignore`.
        sources: Vec<SourceConfig> = usual(Vec::new());
        /// Seconds for which object storage that fails is tried again before the run stops.
        retry_seconds: u64 = usual(180), within(0, 86_400);
        /// Whether `http://` sources on other machines are read; they are not encrypted.
        plain_http: bool = usual(false);
        /// Captions file: JSON, JSON lines, CSV, Parquet, COCO captions or an archive of texts. Leave it out where captions lie
        /// beside the images as `KEY.txt`.
        captions: Option<PathBuf> = optional("\"data/sa1b/captions.json\"");
        /// Column of a table, or key of a JSON record, that holds the image's key.
        caption_key_column: String = usual("key".into()), not_empty();
        /// Column or key that holds the caption.
        caption_column: String = usual("caption".into()), not_empty();
        /// Side of the square training image in pixels.
        resolution: usize = usual(1024), within(16, 8192);
        /// How a photograph becomes a square. (The released code also pads a batch to its largest photograph with black
        /// before it squeezes.)
        crop: Crop = usual(Crop::Stretch);
        /// Colour behind transparent pixels: "white", "black" or "#rrggbb".
        background: Colour = usual(Colour([255; 3]));
        /// sa1b: sentences of a caption that are kept; 0 keeps all.
        caption_sentences: usize = usual(2);
        /// Share of captions that are left empty.
        caption_dropout: f64 = usual(0.0), within(0.0, 1.0);
        /// Smallest mask, as a share of the image's area; smaller ones are left out.
        min_mask_area: f64 = usual(0.005), within(0.0, 1.0);
        /// Masks of an image; the largest are taken.
        max_masks: usize = usual(32), at_least(1);
        /// coco: folder of label maps or panoptic PNGs.
        labels: Option<PathBuf> = optional("\"data/coco/annotations/panoptic_train2017\"");
        /// coco: panoptic JSON, where `labels` are panoptic PNGs.
        panoptic: Option<PathBuf> = optional("\"data/coco/annotations/panoptic_train2017.json\"");
        /// coco: instances or stuff JSON (polygons or run lengths) in place of `labels`.
        instances: Option<PathBuf> = optional("\"data/coco/annotations/instances_train2017.json\"");
        /// coco and folder: names of the classes, a JSON list or an object from label to name. `panoptic` and `instances` name
        /// their own.
        classes: Option<PathBuf> = optional("\"data/coco/classes.json\"");
        /// How the masks of `format = "folder"` are read.
        masks: MaskForm = usual(MaskForm::Auto);
        /// coco and folder: which labels the colours of RGB label maps stand for.
        palette: Option<Palette> = optional("\"voc\"");
        /// Label that is no class (label maps only).
        ignore: u32 = usual(USUAL_IGNORE);
        /// Whether half of the images are mirrored.
        flip: bool = usual(true);
        /// Samples in memory whose order is mixed; 1 keeps the order of the source.
        shuffle_buffer: usize = usual(1000), within(1, 10_000_000);
        /// Folder that `seg4diff prepare cache` filled with latents and text embeddings. With it neither autoencoder nor
        /// text encoders are loaded for training. Not with `crop = "random"`.
        cache: Option<PathBuf> = optional("\"data/sa1b/cache\"");
        /// Decoding threads. The data's order does not depend on them.
        workers: usize = usual(8), within(1, 1024);
        /// Share of unreadable samples above which the run stops.
        max_broken: f64 = usual(0.01), within(0.0, 1.0);
        /// What may be wrong with the data without stopping the run.
        allow: Vec<Allowed> = usual(Vec::new());
    } with {
        /// Whether the model sees captions and names; no key: a learnable prompt takes their place.
        #[serde(skip)]
        has_prompts: bool = !model.learnable_prompt;
    }
}

/// The label that most data sets leave out.
pub(super) const USUAL_IGNORE: u32 = 255;

const SOURCE_EXAMPLE: &str = "[\"data/sa1b/sa_*.tar\"]";

fn sources(may_be_empty: bool) -> Check<Vec<String>> {
    check("at least one, none twice", move |sources: &Vec<String>| {
        sources.iter().try_for_each(is_not_empty)?;
        sources.iter().try_for_each(|source| is_path(source))?;
        if may_be_empty && sources.is_empty() { Ok(()) } else { is_distinct(sources) }
    })
}

impl DataConfig {
    /// What no key can say alone.
    pub(super) fn check(&self, model: &ModelConfig, reader: &mut Reader) {
        let is_coco = self.format == DataFormat::Coco;
        if self.cache.is_some() && self.crop == Crop::Random {
            let why = "a random crop is another picture in every epoch, which no cache can hold";
            let problem = format!("is for crop = \"center\" or \"stretch\" only: {why}");
            reader.problem(&["data.cache", "data.crop"], problem);
        }
        if is_coco && (reader.given("data.source") || self.sources.is_empty()) {
            let missing = |what: &str| format!("is missing; format = \"coco\" needs {what}");
            if self.instances.is_none() && !reader.given("data.labels") {
                let what = "the folder of label-map or panoptic PNGs, or data.instances";
                reader.problem(&["data.labels", "data.format"], missing(what));
            }
            if self.instances.is_none() && self.panoptic.is_none() && !reader.given("data.classes") {
                reader.problem(&["data.classes", "data.format"], missing("the JSON file of class names"));
            }
            for key in ["data.labels", "data.panoptic"] {
                if self.instances.is_some() && reader.given(key) {
                    reader.problem(&[key, "data.instances"], "and data.instances are two kinds of masks; choose one");
                }
            }
        }
        let of_source = |(number, source): (usize, &SourceConfig)| {
            source.problems(self).into_iter().map(move |problem| format!("item {number}: {problem}"))
        };
        let of_sources: Vec<String> = (1..).zip(&self.sources).flat_map(of_source).collect();
        if !of_sources.is_empty() {
            reader.problem(&["data.sources"], of_sources.join("; "));
        }
        let mut refuse = |key: &str, formats: &str| {
            if reader.given(key) {
                reader.problem(&[key, "data.format"], format!("is for format = {formats} only"));
            }
        };
        if !is_coco {
            refuse("data.labels", "\"coco\"");
            refuse("data.panoptic", "\"coco\"");
            refuse("data.instances", "\"coco\"");
        }
        if self.format == DataFormat::Sa1b {
            refuse("data.classes", "\"coco\" or \"folder\"");
            refuse("data.palette", "\"coco\" or \"folder\"");
        }
        if self.format != DataFormat::Folder && self.masks != MaskForm::Auto {
            refuse("data.masks", "\"folder\"");
        }
        for key in ["data.classes", "data.palette"] {
            if self.masks == MaskForm::Binary && reader.given(key) {
                let problem = format!("is \"binary\": such masks have no labels, which {key} is for");
                reader.problem(&["data.masks", key], problem);
            }
        }
        for key in ["data.panoptic", "data.instances"] {
            if self.palette.is_some() && reader.given(key) {
                let problem = format!("is for label maps of colours, which {key} has none of");
                reader.problem(&["data.palette", key], problem);
            }
            // 255 is what recorded settings say.
            if self.sources.is_empty() && self.ignore != USUAL_IGNORE && reader.given(key) {
                let why = "is for label maps: the categories of this file are classes, all of them";
                reader.problem(&["data.ignore", key], why);
            }
        }
        if model.learnable_prompt && is_coco {
            reader.problem(
                &["model.learnable_prompt", "data.format"],
                "masks of classes are paired with their names in the prompt, and a learnt prompt has none; \
                 take another data.format",
            );
        }
        if model.learnable_prompt && self.caption_dropout > 0.0 {
            let problem = "no caption is used: model.learnable_prompt stands in their place";
            reader.problem(&["data.caption_dropout", "model.learnable_prompt"], problem);
        }
    }
}

/// A colour of 8 bits a channel, `[red, green, blue]`; in TOML "#rrggbb" or a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub [u8; 3]);

impl Setting for Colour {
    fn expected() -> String {
        "\"white\", \"black\" or a colour such as \"#ff8000\"".into()
    }

    fn convert(value: &TomlValue) -> Option<Self> {
        match value.as_str()? {
            "white" => Some(Self([255; 3])),
            "black" => Some(Self([0; 3])),
            text => {
                let is_colour = |text: &&str| text.len() == 6 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
                let digits = text.strip_prefix('#').filter(is_colour)?;
                let [_, channels @ ..] = u32::from_str_radix(digits, 16).ok()?.to_be_bytes();
                Some(Self(channels))
            }
        }
    }
}

impl Serialize for Colour {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            [255, 255, 255] => serializer.serialize_str("white"),
            [0, 0, 0] => serializer.serialize_str("black"),
            [red, green, blue] => serializer.serialize_str(&format!("#{red:02x}{green:02x}{blue:02x}")),
        }
    }
}

impl From<Colour> for Rgb<u8> {
    fn from(Colour(channels): Colour) -> Self {
        Self(channels)
    }
}

keys! {
    /// Scenes of emoji, drawn before the run where they are missing, as `seg4diff prepare scenes` does: `FOLDER/train` and
    /// `FOLDER/test` of four drawing styles, `FOLDER/val` of a fifth, which is held out.
    [scenes] pub struct ScenesConfig(reader, data: &DataConfig) {
        /// Folder of the three sets. To train on them: `data.format = "coco"`, or `"sa1b"` on `FOLDER/train/*.tar`.
        folder: PathBuf = required("\"runs/scenes\""), not_empty();
        /// Scenes of `train`.
        train: u64 = usual(10_000), within(1, 100_000_000);
        /// Scenes of `test`.
        test: u64 = usual(1000), within(1, 100_000_000);
        /// Scenes of `val`.
        val: u64 = usual(300), within(1, 100_000_000);
        /// Seed of `train` and `val`; `test` has the next one.
        seed: u64 = usual(0);
        /// Side in pixels.
        size: usize = follows("data.resolution", data.resolution), within(16, 1024);
    }
}

/// One set of scenes: where, how many, and what they are.
#[derive(Clone, Debug, PartialEq)]
pub struct SceneSet {
    /// Where they are.
    pub folder: PathBuf,
    /// How many.
    pub count: u64,
    /// What they are drawn from.
    pub seed: u64,
    /// Whether its objects have the style that is held out.
    pub held_out: bool,
}

impl ScenesConfig {
    /// The three sets.
    pub fn sets(&self) -> [SceneSet; 3] {
        let set =
            |name: &str, count, seed, held_out| SceneSet { folder: self.folder.join(name), count, seed, held_out };
        [
            set("train", self.train, self.seed, false),
            set("test", self.test, self.seed + 1, false),
            set("val", self.val, self.seed, true),
        ]
    }
}
