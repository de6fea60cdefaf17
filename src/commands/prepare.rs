//! `prepare`: makes data sets.
use super::say;
use crate::data::scenes::{self, SceneOptions, Split};
use crate::error::Result;
use crate::report::progress::Progress;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Make data to train on
#[derive(Clone, Debug, Subcommand)]
pub enum PrepareCommand {
    Scenes(ScenesArgs),
}

impl PrepareCommand {
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Scenes(args) => scenes(args),
        }
    }
}

const EXAMPLE: &str = "Example:
  seg4diff prepare scenes --out scenes --count 10000 --seed 1";

/// Draw the demo's scenes: SA-1B shards, and the same scenes as images, captions, label maps and class list
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct ScenesArgs {
    /// Folder for the scenes; must not hold anything yet
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How many scenes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub count: u64,
    /// The same seed draws the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// train: four drawing styles; val: a fifth, which training never sees
    #[arg(long, value_enum, default_value_t = Split::Train)]
    pub split: Split,
    /// Side of a scene in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    pub size: usize,
}

fn scenes(args: &ScenesArgs) -> Result<()> {
    let mut progress = Progress::new("scene", 0, args.count);
    let options = SceneOptions { seed: args.seed, split: args.split, size: args.size };
    scenes::write(&args.out, args.count, options, |done| progress.update(done, ""))?;
    say(&format!("{}: {} scenes", args.out.display(), args.count))
}
