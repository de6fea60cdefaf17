//! `export`: a checkpoint's LoRA in the files that other tools load.
use super::mention;
use crate::error::Result;
use crate::model::adapter_files::{self, Format};
use crate::model::files::{ModelFiles, Part};
use crate::model::mmdit::MmDitConfig;
use crate::terminal::printable_path;
use crate::train::checkpoint::{Checkpoint, config_of};
use crate::train::trained::{adapter_of, origin_of};
use clap::Args;
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff export --checkpoint runs/sa1b/checkpoints/step-001000 --format comfyui --out sa1b-comfyui.safetensors";

/// Write a checkpoint's LoRA for another tool, and check it by reading it back
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct ExportArgs {
    /// Checkpoint folder, such as OUTPUT/checkpoints/step-000250
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    #[arg(long, value_name = "FORMAT")]
    pub format: Format,
    /// File to write; for peft, adapter_config.json is written beside it
    #[arg(long, value_name = "F")]
    pub out: PathBuf,
}

pub fn run(args: &ExportArgs) -> Result<()> {
    let checkpoint = Checkpoint::read(&args.checkpoint)?;
    let config = config_of(&args.checkpoint)?;
    let adapter = adapter_of(&checkpoint.adapter, config.lora.alpha, &args.checkpoint)?;
    // The family only goes into kohya's metadata: an export must work where the base model is not at hand.
    let transformer =
        ModelFiles::open(&config.model.path).and_then(|f| f.config::<MmDitConfig>(Part::Transformer)).ok();
    let origin = origin_of(&config, checkpoint.state.step, transformer.as_ref());
    mention(&printable_path(&adapter_files::export(&adapter, args.format, &args.out, &origin)?));
    Ok(())
}
