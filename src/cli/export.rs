//! `export`: a LoRA in the files that other tools load.
use super::mention;
use crate::config::PartPaths;
use crate::model::adapters::Adapters;
use crate::model::adapters::formats::{self, Format, Origin};
use crate::model::adapters::lora::LoraSettings;
use crate::model::families;
use crate::model::weights::files::ModelFiles;
use crate::system::error::{Error, Result};
use crate::system::paths::is_file;
use crate::system::printable::printable_path;
use crate::train::checkpoint::{Checkpoint, config_of};
use crate::train::trained::{adapters_of, origin_of};
use clap::Args;
use std::path::{Path, PathBuf};

const EXAMPLE: &str = "Example:
  seg4diff export --checkpoint runs/sa1b/checkpoints/step-001000 --format comfyui --out sa1b-comfyui.safetensors
  seg4diff export --lora lora_weights.safetensors --format diffusers --out published.safetensors";

/// Write a LoRA, that of a checkpoint or of a file, for another tool, and check it by reading it back
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct ExportArgs {
    /// Checkpoint folder, such as OUTPUT/checkpoints/step-000250
    #[arg(long, value_name = "DIR", required_unless_present = "lora")]
    pub checkpoint: Option<PathBuf>,
    /// Instead: a LoRA in any of the formats, or as the paper's released code has it, converted to safetensors
    #[arg(long, value_name = "F", conflicts_with = "checkpoint")]
    pub lora: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT")]
    pub format: Format,
    /// File to write; for peft, adapter_config.json is written beside it
    #[arg(long, value_name = "F")]
    pub out: PathBuf,
}

pub fn run(args: &ExportArgs) -> Result<()> {
    let (adapters, origin) = match (&args.checkpoint, &args.lora) {
        (Some(checkpoint), _) => of_checkpoint(checkpoint)?,
        (None, Some(lora)) => (formats::read(lora)?, Origin::default()),
        (None, None) => return Err(Error::Usage("expected --checkpoint or --lora".into())),
    };
    mention(&printable_path(&formats::export(&adapters, args.format, &args.out, &origin)?));
    Ok(())
}

fn of_checkpoint(folder: &Path) -> Result<(Adapters, Origin)> {
    let checkpoint = Checkpoint::read(folder)?;
    let config = config_of(folder)?;
    let settings = LoraSettings { rank: config.lora.rank, alpha: config.lora.alpha };
    let adapters = adapters_of(&checkpoint.adapter, &settings, folder)?;
    // The release only goes into kohya's metadata, and says whose names its layers have where several families could: an
    // export must work where the base model is not at hand.
    let path = Path::new(&config.model.path);
    // Parts that lie elsewhere are not asked for.
    let configs = PartPaths { config: config.model.files.config.clone(), ..PartPaths::default() };
    let files = || ModelFiles::open_with(&config.model.path, None, &configs);
    let transformer = || files().and_then(|files| families::of(&files)?.config(&files));
    let is_at_hand = || Ok::<_, Error>(is_file(path)? || is_file(&path.join("transformer/config.json"))?);
    let transformer = match config.model.is_on_hub() {
        true => transformer().ok(),
        false => is_at_hand()?.then(transformer).transpose()?,
    };
    Ok((adapters, origin_of(&config, checkpoint.state.step, transformer.as_ref())))
}
