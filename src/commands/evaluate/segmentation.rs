//! `evaluate segmentation`: how well a block's attention finds named things.
use crate::commands::ModelArgs;
use crate::error::Result;
use clap::Args;
use std::path::PathBuf;

/// Measure how well a block's attention segments images by the names of what is in them
#[derive(Args, Clone, Debug)]
pub struct SegmentationArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Folder of images (JPEG or PNG)
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
}

pub fn run(args: &SegmentationArgs) -> Result<()> {
    args.model.load().map(drop)
}
