//! `export`: a checkpoint's LoRA in the files that other tools load.
use clap::{Args, ValueEnum};
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
    pub format: ExportFormat,
    /// File to write; for peft, adapter_config.json is written beside it
    #[arg(long, value_name = "F")]
    pub out: PathBuf,
}

/// Whose names and layout the file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// diffusers' load_lora_weights; ComfyUI loads it too
    Diffusers,
    /// PEFT's adapter_model.safetensors
    Peft,
    /// kohya names, as ComfyUI and sd-scripts have them
    Comfyui,
}
