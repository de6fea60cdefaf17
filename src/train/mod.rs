//! The training job: its loop, gradients, optimizer and schedule; its folder and checkpoints.
pub mod checkpoint;
pub mod fingerprint;
pub mod gradients;
pub mod optimizer;
pub mod parameters;
pub mod run_folder;
pub mod schedule;

use crate::config::RunConfig;
use crate::error::Result;

/// STAND-IN until the loop is merged: takes the checkpoint and begins the run's files, as the loop will.
pub fn run(config: &RunConfig, folder: &run_folder::RunFolder, force: bool) -> Result<()> {
    let files = crate::config::ModelFiles::find(std::path::Path::new(&config.model.path), &config.model.text_encoders)?;
    let fingerprint = fingerprint::fingerprint(&files.present)?;
    let checkpoint = folder.load(config, &fingerprint, force)?;
    folder.begin(config, checkpoint.map_or(0, |checkpoint| checkpoint.state.step))?;
    Ok(())
}
