//! The folder that a run writes into: who may write there, and which checkpoint the run resumes from.
use super::checkpoint::{self, Checkpoint};
use super::resume::{Conditions, Override};
use crate::config::RunConfig;
use crate::distributed::Collective;
use crate::report::metrics::MetricsFile;
use crate::report::{KeptPictures, ValidationPictures};
use crate::system::error::{Error, Result};
use crate::system::output_folder::OutputFolder;
use crate::system::paths::exists;
use crate::system::whole_file::write_atomically;
use std::path::{Path, PathBuf};

/// What by itself makes a folder one that holds a run.
const SIGNS: [&str; 4] = ["checkpoints", "metrics.jsonl", "config.toml", "lora.safetensors"];

/// From where a run starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// From step 0, in a folder that holds no run yet.
    No,
    /// From the newest whole checkpoint under OUTPUT, or from step 0 if there is none yet.
    Newest,
    /// From this checkpoint.
    From(PathBuf),
}

/// A run's folder.
pub struct RunFolder {
    /// Where the run writes.
    pub path: PathBuf,
    /// Keeps other runs out as long as this value lives; absent in processes that rank 0 writes for.
    held: Option<OutputFolder>,
    /// The checkpoint to go on from.
    checkpoint: Option<PathBuf>,
}

impl RunFolder {
    /// Takes the folder `output`, made if need be, and finds the checkpoint that `resume` means. Nothing that is
    /// there is changed, but what a killed run left half-written is removed.
    ///
    /// # Errors
    /// `Error::Usage` if `output` holds a run that is not to be resumed; another process trains into it; there is
    /// no such checkpoint, or none is whole.
    pub fn open(output: &Path, resume: &Resume) -> Result<Self> {
        if *resume == Resume::No
            && let Some(sign) = sign_of_run(output)?
            && has_steps(output)?
        {
            return Err(Error::Usage(format!(
                "{}: already holds a run ({} is there); go on with it by --resume, or give another output",
                output.display(),
                sign.display()
            )));
        }
        if let Resume::From(folder) = resume {
            checkpoint::verify(folder)?;
        }
        let held = OutputFolder::hold_or(output, "another process is training into this folder")?;
        checkpoint::remove_leftovers(output)?;
        let folder = Self { held: Some(held), ..Self::join(output, resume)? };
        if *resume == Resume::Newest && folder.checkpoint.is_none() {
            tracing::info!("{}: no checkpoint to resume from yet; starting from step 0", output.display());
        }
        Ok(folder)
    }

    /// The folder for a process that only reads from it, while that of rank 0 has opened it.
    ///
    /// # Errors
    /// There is no such checkpoint, or none is whole.
    pub fn join(output: &Path, resume: &Resume) -> Result<Self> {
        let checkpoint = match resume {
            Resume::No => None,
            Resume::From(folder) => Some(folder.clone()),
            Resume::Newest => checkpoint::newest_whole(output)?,
        };
        Ok(Self { path: output.to_path_buf(), held: None, checkpoint })
    }

    /// Opens the folder at rank 0, and joins it at all other processes, with the checkpoint that rank 0 has found.
    ///
    /// # Errors
    /// As of [`Self::open`]; a process has failed.
    pub fn open_together(output: &Path, resume: &Resume, collective: &dyn Collective) -> Result<Self> {
        if collective.is_main() {
            let folder = Self::open(output, resume)?;
            let checkpoint = folder.checkpoint.as_ref().map(|path| path.as_os_str().as_encoded_bytes());
            collective.broadcast_bytes(checkpoint.unwrap_or_default())?;
            return Ok(folder);
        }
        let checkpoint = collective.broadcast_bytes(&[])?;
        let checkpoint = String::from_utf8_lossy(&checkpoint).into_owned();
        Self::join(output, &if checkpoint.is_empty() { Resume::No } else { Resume::From(checkpoint.into()) })
    }

    /// Reads the checkpoint to go on from, if there is one; see [`Conditions::load`].
    pub fn load(&self, conditions: &Conditions, force: &[Override]) -> Result<Option<Checkpoint>> {
        let Some(folder) = &self.checkpoint else { return Ok(None) };
        let checkpoint = conditions.load(folder, force)?;
        if self.held.is_some() {
            tracing::info!("resuming from {} (step {})", folder.display(), checkpoint.state.step);
        }
        Ok(Some(checkpoint))
    }

    /// Begins to write, after `step`: the resolved config, the metrics cut to that step, newer checkpoints set aside, and older
    /// ones removed that a killed run had yet to remove.
    pub fn begin(&self, config: &RunConfig, step: u64) -> Result<MetricsFile> {
        let path = &self.path;
        write_atomically(&path.join("config.toml"), |out| out.write_all(config.to_toml().as_bytes()))?;
        checkpoint::supersede_after(path, step)?;
        checkpoint::remove_old(path, config.checkpoint.keep)?;
        ValidationPictures::remove_after(path, step)?;
        if let Some(eval) = config.eval.as_ref().filter(|eval| eval.every > 0) {
            ValidationPictures::thin(path, KeptPictures::new(eval.every, config.train.steps, eval.keep_pictures))?;
        }
        MetricsFile::open(&path.join("metrics.jsonl"), step)
    }
}

/// What shows that `output` holds a run, if anything does.
fn sign_of_run(output: &Path) -> Result<Option<PathBuf>> {
    for path in SIGNS.map(|name| output.join(name)) {
        if exists(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Whether the run in `output` may have taken a step. One that failed before (no caption fits, a shard is broken) left
/// an empty `metrics.jsonl`: starting it anew loses nothing.
fn has_steps(output: &Path) -> Result<bool> {
    let is_empty =
        std::fs::metadata(output.join("metrics.jsonl")).is_ok_and(|found| found.is_file() && found.len() == 0);
    Ok(!is_empty || exists(&output.join("checkpoints"))? || exists(&output.join("lora.safetensors"))?)
}
