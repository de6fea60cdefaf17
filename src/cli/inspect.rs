//! `inspect`: the first samples of a training, drawn.
use super::mention;
use crate::config::{Choice, DataConfig, RunConfig};
use crate::data::Loader;
use crate::demo;
use crate::distributed::SingleProcess;
use crate::model::weights::files::ModelFiles;
use crate::report::{Inspection, SampleDrawer};
use crate::system::error::Result;
use crate::system::output_folder::OutputFolder;
use crate::system::printable::printable_path;
use clap::Args;
use std::path::PathBuf;

const EXAMPLE: &str = "Examples:
  seg4diff inspect --config configs/folder.toml
  seg4diff inspect --config configs/demo.toml --set seed=1 --count 8 --out look";

/// Draw the first samples of a training: pictures as cropped, masks over them, prompts as they are cut into tokens
///
/// The samples are those of `train` with this config, in its order, each cropped, mirrored and without its caption as it
/// will be there. Of the model only the tokenizers are read.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct InspectArgs {
    /// Config file (TOML) of the training
    #[arg(long, value_name = "F")]
    pub config: PathBuf,
    /// Set one value over the config file, such as data.crop=center; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How many samples; a smaller data set is shown once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub count: u64,
    /// Folder for inspect.html and the contact sheet inspect.png [default: OUTPUT/inspect, OUTPUT being the config's]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Draws the samples.
///
/// # Errors
/// The config, the data or the tokenizers cannot be read, or the folder cannot be written.
pub fn run(args: &InspectArgs) -> Result<()> {
    let config = RunConfig::load(&args.config, &args.set)?;
    let drawer = SampleDrawer::open(&config, &ModelFiles::of(&config.model)?)?;
    if let Some(scenes) = &config.scenes {
        demo::draw_missing(scenes, &SingleProcess)?;
    }
    let mut loader = Loader::new(&config.data, config.seed, None, false)?;
    let mut inspection = Inspection::new(args.config.display().to_string(), facts(&config));
    for _ in 0..args.count {
        let samples = loader.next_batch(1)?.samples;
        let Some(sample) = samples.first().filter(|sample| sample.epoch == 0) else { break };
        inspection.add(&drawer, sample)?;
    }
    let out = args.out.clone().unwrap_or_else(|| config.output.join("inspect"));
    let _held = OutputFolder::hold(&out)?;
    inspection.write(&out)?;
    let count = inspection.count();
    mention(&format!("{}: the first {count} samples of the training", printable_path(&out.join("inspect.html"))));
    mention(&printable_path(&out.join("inspect.png")));
    Ok(())
}

fn facts(config: &RunConfig) -> Vec<(&'static str, String)> {
    let DataConfig { format, source, resolution, crop, flip, caption_dropout, .. } = &config.data;
    let mirrored = if *flip { ", half of them mirrored" } else { "" };
    let mut facts = vec![
        ("Data", source.join(", ")),
        ("Format", format.name().to_string()),
        ("Pictures", format!("{resolution} × {resolution} pixels, crop {}{mirrored}", crop.name())),
        ("Seed", config.seed.to_string()),
    ];
    if *caption_dropout > 0.0 {
        facts.push(("Captions dropped", format!("{:.0} %", 100.0 * caption_dropout)));
    }
    if !config.loss.uses_masks() {
        facts.push(("Masks", "not used: the mask loss has weight 0".into()));
    }
    if config.model.learnable_prompt {
        facts.push(("Prompt", "learnt: captions are not used".into()));
    }
    facts
}
