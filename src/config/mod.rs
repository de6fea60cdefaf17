//! Every setting of a run, typed, as it stands after parsing and checking. Defaults are what the published adapters were
//! trained with.
//!
//! Each key is declared once (`keys!` in `run`, `model`, `data`, `loss`, `train` and `eval`): from that come the
//! field, the reader with its errors, `seg4diff config`, `docs/config.md` and `configs/sa1b.toml`.
mod data;
mod data_choices;
mod document;
mod eval;
mod help;
mod keys;
mod loss;
mod model;
mod model_choices;
mod per_source;
mod problems;
mod reader;
mod rule;
mod run;
mod setting;
mod sources;
mod train;

pub use data::{Colour, DataConfig, SceneSet, ScenesConfig};
pub use data_choices::{Allowed, Crop, DataFormat, MaskForm, Palette};
pub use eval::{BLUR, BestBy, EvalConfig, MapHeads, MapNormalize, SegmentationProtocol};
pub use help::{explain, markdown, sections, template};
pub use loss::{Alignment, AttentionForm, FocalProbability, HeadMaps, LossConfig};
pub use model::{LoraConfig, ModelConfig, PartPaths, named_blocks};
pub use model_choices::{DeviceChoice, LayerChoice, Quantization, TextEncoderKind, WeightType};
pub use rule::{DefaultKind, KeyDoc, SectionDoc};
pub use run::RunConfig;
pub use setting::Choice;
pub use sources::SourceConfig;
pub use train::{CheckpointConfig, GradientCheckpointing, NoiseConfig, OptimConfig, TrainConfig};
