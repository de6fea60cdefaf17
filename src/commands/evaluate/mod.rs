//! `evaluate`: how good a model is, with or without a LoRA.
pub mod segmentation;

use crate::error::Result;
use clap::Subcommand;

/// Measure a model
#[derive(Clone, Debug, Subcommand)]
pub enum EvaluateCommand {
    Segmentation(segmentation::SegmentationArgs),
}

impl EvaluateCommand {
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Segmentation(args) => segmentation::run(args),
        }
    }
}
