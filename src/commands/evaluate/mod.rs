//! `evaluate`: how good a model is, with or without a LoRA.
pub mod clip_score;
pub mod fid;
pub mod generation;
pub mod looking;
mod predictions;
pub mod referring;
pub mod segmentation;
pub mod unsupervised;

use crate::commands::say;
use crate::error::{Error, Result};
use crate::eval::generation::GenerationScores;
use crate::whole_file::write_atomically;
use clap::Subcommand;
use std::path::Path;

/// Measure a model
#[derive(Clone, Debug, Subcommand)]
pub enum EvaluateCommand {
    Segmentation(segmentation::SegmentationArgs),
    Unsupervised(unsupervised::UnsupervisedArgs),
    Referring(referring::ReferringArgs),
    Generation(generation::GenerationArgs),
    Fid(fid::FidArgs),
    ClipScore(clip_score::ClipScoreArgs),
}

impl EvaluateCommand {
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Segmentation(args) => segmentation::run(args),
            Self::Unsupervised(args) => unsupervised::run(args),
            Self::Referring(args) => referring::run(args),
            Self::Generation(args) => generation::run(args),
            Self::Fid(args) => fid::run(args),
            Self::ClipScore(args) => clip_score::run(args),
        }
    }
}

/// Writes scores as JSON; the file is whole or absent.
pub(super) fn write_json(file: &Path, scores: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(scores).map_err(|e| Error::file(file, e))?;
    write_atomically(file, |out| out.write_all(&json))
}

/// Prints distances from real images, one a line.
fn say_distances(scores: &GenerationScores) -> Result<()> {
    let line = |(name, value): (&str, f64)| say(&format!("{name:8} {value:.6}"));
    scores.named().into_iter().try_for_each(line)
}
