//! Checkpoints: all that an exact resume needs, in a folder that is whole or absent.
//!
//! `OUTPUT/checkpoints/step-000250/` holds `adapter.safetensors` (LoRA and score head), `optimizer.safetensors`,
//! `config.toml` and `state.json`. It is written as a hidden sibling, every file synced, and then renamed; `state.json`
//! has length and SHA-256 of the other files, so that damage is found before anything is read.
use crate::config::RunConfig;
use crate::data::{Cursor, DataFingerprint};
use crate::model::adapters::formats::CHECKPOINT_FILE;
use crate::model::weights::fingerprint::sha256;
use crate::model::weights::{read_all, write};
use crate::report::summary::Stage;
use crate::system::error::{Error, Result};
use crate::system::limits::STATE as STATE_FILE;
use crate::system::paths::is_file;
use crate::system::whole_file::{
    WRITING, entries, remove, remove_if_there, rename, replace_folder, sweep, sync, write_atomically,
};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Version of the layout; any other is refused.
const FORMAT: u64 = 1;
const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const CONFIG: &str = "config.toml";
const STATE: &str = "state.json";

/// The state of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// Images seen.
    pub samples: u64,
    /// Passes over the whole data set.
    pub epoch: u64,
    /// Position in the data.
    pub cursor: Cursor,
    /// What else is counted.
    pub counters: Counters,
    /// Fingerprint of the base model.
    pub model: String,
    /// What identifies the data; absent in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataFingerprint>,
    /// SHA-256 of what training started from in place of fresh values, by the setting that names it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub init: BTreeMap<String, String>,
}

/// Counters of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Counters {
    /// Broken samples that were skipped.
    pub broken: u64,
    /// Steps without a finite loss and gradient.
    pub nonfinite: u64,
    /// Of those, the last ones in a row.
    pub nonfinite_in_a_row: u64,
}

impl State {
    /// Steps that changed something.
    pub fn effective_steps(&self) -> u64 {
        self.step.saturating_sub(self.counters.nonfinite)
    }
}

/// One checkpoint in memory. All tensors are f32 and on the CPU.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Where the run stands.
    pub state: State,
    /// How many processes train together.
    pub processes: usize,
    /// LoRA and score head by name.
    pub adapter: BTreeMap<String, Tensor>,
    /// Optimizer state by name.
    pub optimizer: BTreeMap<String, Tensor>,
}

/// `state.json`.
#[derive(Serialize, Deserialize)]
struct StateFile {
    format: u64,
    /// The processes that trained together.
    #[serde(default = "one")]
    processes: usize,
    state: State,
    files: BTreeMap<String, FileSum>,
}

fn one() -> usize {
    1
}

#[derive(Serialize, Deserialize)]
struct FileSum {
    bytes: u64,
    sha256: String,
}

impl Checkpoint {
    /// Writes the checkpoint of its step under `output`, then removes all but the `checkpoint.keep` newest.
    pub fn save(&self, output: &Path, config: &RunConfig) -> Result<PathBuf> {
        let parent = output.join("checkpoints");
        std::fs::create_dir_all(&parent).map_err(|e| Error::file(&parent, e))?;
        sync(output).map_err(|e| Error::file(output, e))?;
        let folder = self.save_as(&parent, &format!("step-{:06}", self.state.step), config)?;
        remove_old(output, config.checkpoint.keep)?;
        Ok(folder)
    }

    /// Writes the folder `parent/name`, whole or not at all, in place of the one that is there.
    pub fn save_as(&self, parent: &Path, name: &str, config: &RunConfig) -> Result<PathBuf> {
        let aside = parent.join(format!("{WRITING}{name}"));
        remove_if_there(&aside)?;
        std::fs::create_dir(&aside).map_err(|e| Error::file(&aside, e))?;
        if let Err(problem) = self.fill(&aside, config) {
            // What was written must not stay on a full disk; the error to report is the first one.
            let _ = remove_if_there(&aside);
            return Err(problem);
        }

        let folder = parent.join(name);
        replace_folder(&aside, &folder)?;
        Ok(folder)
    }

    fn fill(&self, folder: &Path, config: &RunConfig) -> Result<()> {
        write(&folder.join(CHECKPOINT_FILE), &self.adapter, &BTreeMap::new())?;
        write(&folder.join(OPTIMIZER), &self.optimizer, &BTreeMap::new())?;
        write_atomically(&folder.join(CONFIG), |out| out.write_all(config.to_toml().as_bytes()))?;
        let mut files = BTreeMap::new();
        for name in [CHECKPOINT_FILE, OPTIMIZER, CONFIG] {
            let (sha256, bytes) = sha256(&folder.join(name))?;
            files.insert(name.to_string(), FileSum { bytes, sha256 });
        }
        let state = StateFile { format: FORMAT, processes: self.processes, state: self.state.clone(), files };
        let path = folder.join(STATE);
        let text = serde_json::to_vec_pretty(&state).map_err(|e| Error::file(&path, e))?;
        write_atomically(&path, |out| out.write_all(&text))
    }

    /// Reads the checkpoint in `folder` for whatever config and model it is.
    ///
    /// # Errors
    /// The checkpoint is damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let (state, processes) = verify_with_processes(folder)?;
        Ok(Self {
            state,
            processes,
            adapter: read_f32(&folder.join(CHECKPOINT_FILE))?,
            optimizer: read_f32(&folder.join(OPTIMIZER))?,
        })
    }
}

/// The configuration that the checkpoint in `folder` was trained with.
pub fn config_of(folder: &Path) -> Result<RunConfig> {
    RunConfig::load(&folder.join(CONFIG), &[])
}

/// The checkpoints under `output`, oldest first, whole or not.
pub fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let parent = output.join("checkpoints");
    let mut found: Vec<(u64, PathBuf)> =
        entries(&parent)?.into_iter().filter_map(|path| Some((step_of(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

/// The newest checkpoint under `output` that is whole; newer ones that are not are passed over with a warning.
///
/// # Errors
/// There are checkpoints, but none is whole: to start over silently would throw a run away.
pub fn newest_whole(output: &Path) -> Result<Option<PathBuf>> {
    let mut damage = Vec::new();
    for (_, folder) in list(output)?.into_iter().rev() {
        match verify(&folder) {
            Ok(_) => return Ok(Some(folder)),
            Err(e) => {
                tracing::warn!("passing over a checkpoint that is not whole: {e}");
                damage.push(e.to_string());
            }
        }
    }
    if damage.is_empty() {
        return Ok(None);
    }
    Err(Error::file(output.join("checkpoints"), format!("no checkpoint is whole: {}", damage.join("; "))))
}

/// Checks that the checkpoint in `folder` is all there and undamaged.
pub fn verify(folder: &Path) -> Result<State> {
    verify_with_processes(folder).map(|(state, _)| state)
}

/// As [`verify`], with the number of processes that trained together.
fn verify_with_processes(folder: &Path) -> Result<(State, usize)> {
    let path = folder.join(STATE);
    if !is_file(&path)? {
        return Err(Error::file(folder, format!("not a checkpoint: it has no {STATE}")));
    }
    let text = STATE_FILE.read(&path).map_err(|e| Error::file(&path, e))?;
    let damaged = |e: serde_json::Error| Error::file(&path, format!("damaged: {e}"));
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
    match value.get("format").and_then(|format| format.as_u64()) {
        Some(FORMAT) => {}
        Some(format) => {
            return Err(Error::file(&path, format!("format {format} of another version, expected {FORMAT}")));
        }
        None => return Err(Error::file(&path, "damaged: it has no format")),
    }
    let StateFile { state, files, processes, .. } = serde_json::from_value(value).map_err(damaged)?;
    if step_of(folder).is_some_and(|step| step != state.step) {
        return Err(Error::file(&path, format!("step {} in a folder of another step", state.step)));
    }
    for name in [CHECKPOINT_FILE, OPTIMIZER, CONFIG] {
        let file = folder.join(name);
        let Some(sum) = files.get(name) else {
            return Err(Error::file(&path, format!("damaged: it does not list {name}")));
        };
        let length = std::fs::metadata(&file).map_err(|e| Error::file(&file, e))?.len();
        if length != sum.bytes {
            return Err(Error::file(&file, format!("damaged: {length} bytes, expected {}", sum.bytes)));
        }
        let found = sha256(&file)?.0;
        if found != sum.sha256 {
            return Err(Error::file(&file, format!("damaged: SHA-256 {found}, expected {}", sum.sha256)));
        }
    }
    Ok((state, processes))
}

/// Removes all checkpoints under `output` but the `keep` newest; 0 keeps all. Each is there whole or not at all.
pub fn remove_old(output: &Path, keep: usize) -> Result<()> {
    let old = list(output)?.into_iter().rev().skip(if keep == 0 { usize::MAX } else { keep });
    old.into_iter().try_for_each(|(_, folder)| remove(&folder))
}

/// Renames the checkpoints after `step` to `step-….superseded`: a run that goes on from `step` writes new ones, and
/// the old ones must not be taken for them.
pub fn supersede_after(output: &Path, step: u64) -> Result<()> {
    for (_, folder) in list(output)?.into_iter().filter(|(found, _)| *found > step) {
        let name = folder.with_extension("superseded");
        remove(&name)?;
        rename(&folder, &name)?;
        tracing::info!("set aside as {}: the run goes on from step {step}", name.display());
    }
    Ok(())
}

/// Removes what a killed run left half-written in `output`.
pub fn remove_leftovers(output: &Path) -> Result<()> {
    let folders = ["", "checkpoints", "validation", "samples"].into_iter().map(|folder| output.join(folder));
    let samples = Stage::ALL.into_iter().map(|stage| output.join("samples").join(stage.key()));
    folders.chain(samples).try_for_each(|folder| sweep(&folder))
}

fn read_f32(file: &Path) -> Result<BTreeMap<String, Tensor>> {
    let tensors = read_all(file)?;
    match tensors.iter().find(|(_, tensor)| tensor.dtype() != DType::F32) {
        Some((name, tensor)) => {
            Err(Error::file(file, format!("tensor {name} is {}, expected f32", tensor.dtype().as_str())))
        }
        None => Ok(tensors),
    }
}

/// The step that a checkpoint's folder name says; `None` for any other path.
fn step_of(folder: &Path) -> Option<u64> {
    let digits = folder.file_name()?.to_str()?.strip_prefix("step-")?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}
