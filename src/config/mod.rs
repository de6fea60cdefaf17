//! Every setting of a run, typed, as it stands after parsing and checking. Defaults are what the published adapters were trained with.
//!
//! Relative paths are relative to the folder that the program is started in, not to the config file.
mod document;
mod eval;
mod loss;
mod maps;
mod parse;
mod problems;
mod reader;
mod setting;

pub use eval::BLUR;
pub use loss::{Alignment, AttentionForm, FocalProbability, HeadMaps, LossConfig};
pub use maps::{MapHeads, MapNormalize, named_blocks};
pub use setting::Choice;

use serde::Serialize;
use std::path::{Path, PathBuf};

/// A checked run configuration; serialises to the `config.toml` that is written into the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunConfig {
    /// Seeds every random draw of the run.
    pub seed: u64,
    pub device: DeviceChoice,
    /// Folder that everything a run writes goes into.
    pub output: PathBuf,
    pub model: ModelConfig,
    pub lora: LoraConfig,
    pub data: DataConfig,
    pub noise: NoiseConfig,
    pub loss: LossConfig,
    pub optim: OptimConfig,
    pub train: TrainConfig,
    pub checkpoint: CheckpointConfig,
    /// What is measured before and after training; absent where the config has no section `[eval]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalConfig>,
    /// Scenes that are drawn before the run; absent where the config has no section `[scenes]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenes: Option<ScenesConfig>,
}

/// One set of scenes: where, how many, and what they are.
#[derive(Clone, Debug, PartialEq)]
pub struct SceneSet {
    pub folder: PathBuf,
    pub count: u64,
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

impl RunConfig {
    /// The same run on the flow loss alone, into a folder of its own within this one's.
    pub fn without_masks(&self) -> Self {
        let mut plain = self.clone();
        plain.output = self.output.join("without_masks");
        plain.eval = None;
        plain.loss.score_head_init = None;
        for weight in [&mut plain.loss.align_weight, &mut plain.loss.focal_weight, &mut plain.loss.dice_weight] {
            *weight = 0.0;
        }
        plain
    }
}

impl EvalConfig {
    /// Folder of the real images that drawn ones are compared with.
    pub fn real_images(&self) -> &Path {
        self.real.as_deref().unwrap_or(&self.images)
    }
}

/// The demo's scenes, drawn where they are missing: `FOLDER/train` and `FOLDER/test` of the styles to train on, and
/// `FOLDER/val` of the style that is held out, each as `prepare scenes` writes them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScenesConfig {
    pub folder: PathBuf,
    /// How many scenes each has.
    pub train: u64,
    pub test: u64,
    pub val: u64,
    /// Seed of `train` and `val`; `test` has the next one.
    pub seed: u64,
    /// Side in pixels.
    pub size: usize,
}

/// `auto` (CUDA if this build and machine have it, else the CPU), `cpu` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// A diffusers folder, or `hf:org/name@revision`.
    pub path: String,
    /// Type of the frozen weights in memory.
    pub dtype: WeightType,
    pub text_encoders: Vec<TextEncoderKind>,
    /// Tokens that T5 is padded or cut to, or zeros that stand in for it (diffusers' name; 77 as in its training script).
    pub max_sequence_length: usize,
    /// 0-based indices, ascending, of the semantic grounding experts: the blocks whose attention, averaged, learns the
    /// masks (`ATTENTION_LAYERS`). There is one at least.
    pub expert_layers: Vec<usize>,
    /// Whether every image is told the same prompt, whose token embeddings are trained, in place of its caption (the
    /// released code's `USE_LEARNABLE_TOKENS`).
    pub learnable_prompt: bool,
}

impl ModelConfig {
    /// The highest expert: the mask loss reaches no further.
    pub fn last_expert(&self) -> usize {
        self.expert_layers.last().copied().unwrap_or(0)
    }

    /// The experts as people say them: `block 9`, or `blocks 7, 8, 9`.
    pub fn experts(&self) -> String {
        named_blocks(&self.expert_layers)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    F32,
    Bf16,
    F16,
}

impl WeightType {
    pub fn dtype(self) -> candle_core::DType {
        match self {
            Self::F32 => candle_core::DType::F32,
            Self::Bf16 => candle_core::DType::BF16,
            Self::F16 => candle_core::DType::F16,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TextEncoderKind {
    ClipL,
    ClipG,
    T5,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f64,
    /// Module names within a block, as diffusers has them: `attn.to_q`, `attn.to_out.0`, `ff.net.0.proj`, …
    pub targets: Vec<String>,
    pub layers: LayerChoice,
    /// Adapter that training starts from, a file or folder in any format that is read; absent: a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

/// `"all"` or a list of 0-based block indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerChoice {
    All,
    List(Vec<usize>),
}

impl Serialize for LayerChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::List(layers) => layers.serialize(serializer),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataConfig {
    pub format: DataFormat,
    /// Shards or folders; each entry may be a glob.
    pub source: Vec<String>,
    /// Captions file (JSON object, JSON lines, Parquet); absent where captions lie beside the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captions: Option<PathBuf>,
    /// Parquet columns (or JSON-lines keys) that hold the image key and its caption.
    pub caption_key_column: String,
    pub caption_column: String,
    /// coco: folder of label maps or panoptic PNGs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// coco: panoptic JSON, where `labels` are panoptic PNGs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panoptic: Option<PathBuf>,
    /// coco and folder: label → name (JSON list or object).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<PathBuf>,
    /// Label value that is no class.
    pub ignore: u32,
    /// Side of the square training image in pixels.
    pub resolution: usize,
    pub crop: Crop,
    /// sa1b: how many sentences of the caption are kept; 0 keeps all.
    pub caption_sentences: usize,
    pub caption_dropout: f64,
    /// Smallest mask, as a share of the image's area.
    pub min_mask_area: f64,
    pub max_masks: usize,
    pub flip: bool,
    /// Samples whose order is mixed at a time; 1 keeps the order of the source.
    pub shuffle_buffer: usize,
    /// Folder that `prepare cache` filled, whose latents and text embeddings are taken in place of encoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    pub workers: usize,
    /// Share of broken samples above which the run stops.
    pub max_broken: f64,
    /// Whether captions and names are told to the model; not a setting: a learnt prompt stands in their place.
    #[serde(skip)]
    pub has_prompts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    Sa1b,
    Coco,
    Folder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// The shorter side scaled to the resolution, and the middle taken.
    Center,
    /// The same, and any window taken with the same probability.
    Random,
    /// The whole photograph squeezed to a square.
    Stretch,
}

/// What segmentation is told of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentationProtocol {
    /// The names of the classes in its ground truth, as the paper does.
    Present,
    /// The names of all classes.
    All,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NoiseConfig {
    pub logit_mean: f64,
    pub logit_std: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptimConfig {
    pub lr: f64,
    /// The LoRA's learning rate is `lr` times this.
    pub lora_lr_scale: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest gradient norm over all trained parameters; 0 turns clipping off.
    pub clip_norm: f64,
    pub warmup_steps: u64,
    pub warmup_factor: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainConfig {
    pub steps: u64,
    /// Images a forward pass.
    pub batch: usize,
    /// Forward passes an optimizer step.
    pub accumulate: usize,
    pub gradient_checkpointing: GradientCheckpointing,
    /// Steps in a row with a loss or gradient that is not finite before the run stops.
    pub max_nonfinite: u64,
}

/// `auto` recomputes only the blocks whose activations do not fit into free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientCheckpointing {
    Auto,
    On,
    Off,
}

impl Serialize for GradientCheckpointing {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::On => serializer.serialize_bool(true),
            Self::Off => serializer.serialize_bool(false),
        }
    }
}

/// The score of a validation that says which checkpoint is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BestBy {
    /// The higher the better.
    Miou,
    /// The lower the better.
    HeldOutFlow,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 writes one at the end only.
    pub every: u64,
    /// How many of the newest are kept; 0 keeps all.
    pub keep: usize,
}

/// What is measured of the model, on images that it is not trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalConfig {
    /// Folder of held-out images: those that are segmented.
    pub images: PathBuf,
    /// Folder of the real images that drawn ones are compared with; absent: `images`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub real: Option<PathBuf>,
    /// Folder of their label maps, and the label → name file; absent where segmentation is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<PathBuf>,
    /// Captions of images, which are drawn from; absent where none are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captions: Option<PathBuf>,
    /// How many images are segmented, the first by name; 0 for all.
    pub segmentation_images: usize,
    pub protocol: SegmentationProtocol,
    /// The blocks whose attention segments, averaged.
    pub layers: Vec<usize>,
    /// How their attention becomes maps.
    pub heads: MapHeads,
    pub attention: AttentionForm,
    pub normalize: MapNormalize,
    /// Side in pixels of the squares that are segmented and drawn.
    pub size: usize,
    /// How many of the real images the flow loss is measured on, the first by name; 0 for none.
    pub flow_images: usize,
    /// How many images all blocks are looked at with, the first by name; 0 for none.
    pub analysis_images: usize,
    /// How many images are drawn; 0 where generation is not measured.
    pub generation_images: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; 1 or less turns guidance off.
    pub guidance: f64,
    /// Scale of guidance away from what the model draws with a block's attention to the text blurred; 0 turns it off.
    pub perturb_scale: f64,
    /// The block whose attention that is.
    pub perturb_layer: usize,
    /// Standard deviation of the blur in image tokens.
    pub perturb_sigma: f64,
    /// Images that are segmented, drawn and looked at together.
    /// Absent: as many as make up a megapixel, at most 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Seed of all noise of the evaluation; apart from the run's, so that runs of different seeds compare.
    pub seed: u64,
    /// Weights of FID's Inception.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inception: Option<PathBuf>,
    /// Folder of the demo's classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<PathBuf>,
    /// Steps between small validations while training; 0 for none.
    pub every: u64,
    /// Images that each of them segments, and measures the flow loss on.
    pub every_images: usize,
    /// Pictures that each of them draws; 0 for none.
    pub every_samples: usize,
    /// Validations whose pictures are kept; 0 keeps all.
    pub keep_pictures: u64,
    /// The score by which the best checkpoint is kept.
    pub best_by: BestBy,
    /// Also measure the model as it is before training.
    pub before: bool,
    /// Also train as long on the flow loss alone, and measure that.
    pub compare_without_masks: bool,
}
