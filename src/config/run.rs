//! The whole configuration of a run: the keys above all sections, and the sections.
use super::data::{DataConfig, ScenesConfig};
use super::document::{Document, read_text};
use super::eval::EvalConfig;
use super::keys::keys;
use super::loss::LossConfig;
use super::model::{LoraConfig, ModelConfig};
use super::model_choices::DeviceChoice;
use super::problems::Problems;
use super::reader::Reader;
use super::rule::{required, usual};
use super::setting::not_empty;
use super::train::{CheckpointConfig, NoiseConfig, OptimConfig, TrainConfig};
use crate::system::error::Result;
use std::path::{Path, PathBuf};

keys! {
    /// A checked run configuration; it serialises to the `config.toml` that is written into the run.
    [] pub struct RunConfig(reader) {
        /// Seed of every random draw of the run: the order of the data and all noise follow from it alone.
        seed: u64 = usual(0);
        /// Where tensors live: `auto` is the first CUDA device if this build and machine have one, else the CPU; `cpu`;
        /// or `cuda:N`.
        device: DeviceChoice = usual(DeviceChoice::Auto);
        /// Folder that everything the run writes goes into. One that holds a run already is refused: resume that, or name
        /// another.
        output: PathBuf = required("\"runs/NAME\""), not_empty();
    } with {
        /// The base model.
        model: ModelConfig = ModelConfig::read(reader);
        /// The adapter that is trained.
        lora: LoraConfig = LoraConfig::read(reader);
        /// What it is trained on.
        data: DataConfig = DataConfig::read(reader, &model);
        /// Noise levels of training.
        noise: NoiseConfig = NoiseConfig::read(reader);
        /// What training minimises.
        loss: LossConfig = LossConfig::read(reader);
        /// The optimizer.
        optim: OptimConfig = OptimConfig::read(reader);
        /// Length and size of the run.
        train: TrainConfig = TrainConfig::read(reader);
        /// When checkpoints are written.
        checkpoint: CheckpointConfig = CheckpointConfig::read(reader);
        /// What is measured before and after training; absent where the config has no section `[eval]`.
        eval: Option<EvalConfig> = reader.optional_section("eval", |reader| EvalConfig::read(reader, &model, &data));
        /// Scenes that are drawn before the run; absent where the config has no section `[scenes]`.
        scenes: Option<ScenesConfig> = reader.optional_section("scenes", |reader| ScenesConfig::read(reader, &data));
    }
}

impl RunConfig {
    /// Reads a config file and lays `overrides` (`a.b=c`, from `--set`) over it, without looking at any other file.
    ///
    /// # Errors
    /// `Error::Usage` with a line for every problem: `FILE:LINE:COLUMN: …`, or `--set KEY=VALUE: …`.
    pub fn load(file: &Path, overrides: &[String]) -> Result<Self> {
        Self::parse(&read_text(file)?, file, overrides)
    }

    /// As `load`, from text; `file` is what errors name.
    pub fn parse(text: &str, file: &Path, overrides: &[String]) -> Result<Self> {
        let mut problems = Problems::new(file);
        let mut document = Document::parse(text, &mut problems);
        overrides.iter().for_each(|text| document.set(text, &mut problems));
        // What follows a syntax error is guesswork: stop here if there is one.
        problems.into_result()?;
        let (config, reader) = Self::of_document(document, file);
        reader.finish()?;
        Ok(config)
    }

    /// Reads and checks all that `document` says; whether it was right is for the reader to tell.
    pub(super) fn of_document(document: Document, file: &Path) -> (Self, Reader) {
        let mut reader = Reader::new(document, Problems::new(file));
        let config = Self::read(&mut reader);
        config.data.check(&config.model, &mut reader);
        config.loss.check(&config.model, &config.lora, &mut reader);
        config.optim.check(&config.train, &config.lora, &mut reader);
        if let Some(eval) = &config.eval {
            eval.check(&config.loss, &mut reader);
        }
        (config, reader)
    }

    /// The configuration as TOML, every key written out; `load` gives an equal value back.
    pub fn to_toml(&self) -> String {
        // Every integer came from TOML and every map key is a field's name: there is nothing that TOML cannot hold.
        toml::to_string(self).expect("a run configuration is valid TOML")
    }

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
