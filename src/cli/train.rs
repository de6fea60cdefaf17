//! `train`: the main job.
use super::{mention, say};
use crate::config::RunConfig;
use crate::data::{DataSet, Inventory};
use crate::demo;
use crate::distributed::Collective;
use crate::system::error::Result;
use crate::system::printable::printable_path;
use crate::train::resume::Override;
use crate::train::run_folder::{Resume, RunFolder};
use crate::train::{Components, first_samples, frozen_weights};
use clap::Args;
use std::path::PathBuf;

const EXAMPLE: &str = "Examples:
  train --config configs/sa1b.toml --check
  train --config configs/sa1b.toml --set train.steps=2000 --set output=runs/long
  train --config configs/sa1b.toml --resume";

/// Train a LoRA adapter as a config file says
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct TrainArgs {
    /// Config file (TOML); `seg4diff config` prints one with every key
    #[arg(long, value_name = "F")]
    pub config: PathBuf,
    /// Go on with the run in OUTPUT: from checkpoint DIR, or from the newest that is whole
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
    /// Set one value over the config file, such as train.steps=100; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Only check the config and the files that it names
    #[arg(long)]
    pub check: bool,
    /// Resume although settings differ from the checkpoint's; a list of settings, model and data names what may
    #[arg(long, value_name = "WHAT", requires = "resume", num_args = 0..=1, value_delimiter = ',')]
    #[arg(default_missing_value = "settings", hide_possible_values = true)]
    pub force: Vec<Override>,
}

/// Checks the config and the files that it names and, unless `--check` is given, trains, as one of these processes.
///
/// # Errors
/// The config, a file that it names, or the run itself.
pub fn run(args: &TrainArgs, processes: &dyn Collective) -> Result<()> {
    let config = RunConfig::load(&args.config, &args.set)?;
    config.check_files()?;
    if args.check {
        if !config.draws_sources() {
            check_data(&config)?;
        }
        if !config.model.is_on_hub() {
            say(&frozen_weights::describe(&config)?)?;
        }
        let file = printable_path(&args.config);
        let next = format!("seg4diff inspect --config {file} draws the first samples as training will see them");
        return say(&format!("{file}: ok\n{next}"));
    }
    let device = config.device.open()?;
    let resume = match &args.resume {
        None => Resume::No,
        Some(None) => Resume::Newest,
        Some(Some(folder)) => Resume::From(folder.clone()),
    };
    let folder = RunFolder::open_together(&config.output, &resume, processes)?;
    if let Some(scenes) = &config.scenes {
        demo::draw_missing(scenes, processes)?;
    }
    let components = Components { collective: processes, ..Components::default() };
    if let Some(table) = crate::train::run(&config, &device, &folder, &args.force, &components)? {
        mention(&table);
    }
    Ok(())
}

/// Prints what the sources hold and what the first samples show.
///
/// # Errors
/// What a run would refuse.
fn check_data(config: &RunConfig) -> Result<()> {
    let data = DataSet::open(&config.data)?;
    let inventory = Inventory::of(&data)?;
    say(&inventory.to_string())?;
    inventory.check(&config.data.allow)?;
    if config.model.is_on_hub() {
        return say("the first samples are not looked at: the tokenizers of a model on the hub come with it");
    }
    match first_samples::check(config, &data)? {
        Some(line) => say(&line),
        None => Ok(()),
    }
}
