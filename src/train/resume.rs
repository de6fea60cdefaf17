//! What a resumed run must share with its checkpoint: settings, base model and data.
use super::checkpoint::{CONFIG, Checkpoint, State};
use super::schedule::LearningRateSchedule;
use crate::config::{RunConfig, TrainConfig};
use crate::data::DataRecord;
use crate::data::sources::remote;
use crate::model::adapters::formats::{self, CHECKPOINT_FILE};
use crate::model::weights::fingerprint::sha256;
use crate::system::error::{Error, Result};
use clap::ValueEnum;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Settings that a resumed run may change, because no trained value depends on them: where things lie (the base
/// model is recognised by its fingerprint, what a cache holds by what it was made of), on what and with how many threads
/// it runs, what is kept, when it gives up; and all of `[eval]`. The files of `lora.init` and `loss.score_head_init` are
/// recognised by their content.
const RESUME_MAY_CHANGE: [&str; 16] = [
    "output",
    "device",
    "model.path",
    "model.variant",
    "model.files",
    "lora.init",
    "loss.score_head_init",
    "data.retry_seconds",
    "data.plain_http",
    "data.cache",
    "data.workers",
    "data.max_broken",
    "train.gradient_checkpointing",
    "train.max_nonfinite",
    "checkpoint.every",
    "checkpoint.keep",
];

/// Where the data lie, which are recognised by their fingerprint.
const DATA_PATHS: [&str; 6] =
    ["data.source", "data.captions", "data.labels", "data.panoptic", "data.instances", "data.classes"];

/// The record of a run's data in its folder.
pub(super) const RECORD: &str = "data-files.txt";

/// What a checkpoint may have another of where `--force` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Override {
    /// Other settings
    Settings,
    /// Another base model
    Model,
    /// Pictures, captions or masks that were added, removed or changed
    Data,
}

/// What a run has now, to be compared with its checkpoint.
pub struct Conditions<'a> {
    /// Its settings.
    pub config: &'a RunConfig,
    /// The fingerprint of its base model.
    pub model: &'a str,
    /// Its data.
    pub data: &'a DataRecord,
    /// Its schedule.
    pub schedule: LearningRateSchedule,
    /// The processes that train together.
    pub processes: usize,
}

impl Conditions<'_> {
    /// Reads the checkpoint in `folder` for a run under these conditions.
    ///
    /// # Errors
    /// The checkpoint is damaged; or (`Error::Usage`) something differs that `force` does not name: the message has a line
    /// for everything that does.
    pub fn load(&self, folder: &Path, force: &[Override]) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::read(folder)?;
        let differences = self.differences(folder, &checkpoint.state, checkpoint.processes)?;
        let refused: Vec<&Difference> = differences.iter().filter(|(kind, _)| !force.contains(kind)).collect();
        let folder_name = folder.display();
        if !refused.is_empty() {
            return Err(Error::Usage(format!("{folder_name}: {}\n  {}", advice(&refused), lines(refused))));
        }
        if !differences.is_empty() {
            let lines = lines(&differences);
            tracing::warn!("{folder_name}: resuming all the same, as --force says\n  {lines}");
        }
        Ok(checkpoint)
    }

    /// What differs from the checkpoint of so many `processes` in `folder`, whose state is `state`.
    fn differences(&self, folder: &Path, state: &State, processes: usize) -> Result<Vec<Difference>> {
        let mut found = self.settings(folder, state, processes)?;
        if state.model != self.model {
            let path = &self.config.model.path;
            let text = format!(
                "model.path: the model in {path} is not the one that the checkpoint was trained on; of the same model, a \
                 folder and one file count as two"
            );
            found.push((Override::Model, text));
        }
        let init = init_fingerprints(self.config)?;
        for key in init.keys().chain(state.init.keys()).collect::<BTreeSet<_>>() {
            if init.get(key) != state.init.get(key) {
                let text = format!("{key}: not the file, or none, that the run started from");
                found.push((Override::Settings, text));
            }
        }
        found.extend(self.data(folder, state)?.into_iter().map(|text| (Override::Data, text)));
        Ok(found)
    }

    /// The settings of the checkpoint's config that differ and matter.
    fn settings(&self, folder: &Path, state: &State, processes: usize) -> Result<Vec<Difference>> {
        let file = folder.join(CONFIG);
        let text = std::fs::read_to_string(&file).map_err(|e| Error::file(&file, e))?;
        // Read as any config, so that one of an older version has the settings that came since, at their defaults. What is
        // no config of today is compared as it stands.
        let parsed = RunConfig::parse(&text, &file, &[]).ok();
        let was = flat(&parsed.as_ref().map_or(text, RunConfig::to_toml)).map_err(|e| Error::file(&file, e))?;
        let now = flat(&self.config.to_toml()).map_err(|e| Error::file(&file, e))?;
        let show = |value: Option<&toml::Value>| {
            value.map_or("nothing".to_string(), |value| remote::shown(&value.to_string()))
        };
        let mut found = vec![];
        let images = parsed.as_ref().and_then(|was| self.images_of_a_step(was, processes));
        found.extend(images.map(|text| (Override::Settings, text)));
        for key in was.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
            let is_free = RESUME_MAY_CHANGE.contains(&key.as_str())
                || key.starts_with("eval.")
                // Compared above, with the number of processes.
                || (parsed.is_some() && key == "train.accumulate")
                || (state.data.is_some() && DATA_PATHS.contains(&key.as_str()));
            let is_equal = was.get(key) == now.get(key)
                || (state.data.is_some()
                    && key == "data.sources"
                    && was.get(key).map(without_paths) == now.get(key).map(without_paths));
            if is_free || is_equal {
                continue;
            }
            let mut text = format!("{key}: {} in the checkpoint, {} now", show(was.get(key)), show(now.get(key)));
            if key == "train.steps"
                && let Some(was) = &parsed
            {
                match self.changed_rate(was.train.steps, state.step) {
                    Some((step, [was, now])) => {
                        text += &format!(
                            ": the learning rate follows the run's length (step {step} had {was:.3e}, and would have had {now:.3e})"
                        );
                    }
                    None => continue,
                }
            }
            found.push((Override::Settings, text));
        }
        Ok(found)
    }

    /// What is wrong with the number of images of a step, where it is another than in the checkpoint of so many `processes`.
    fn images_of_a_step(&self, was: &RunConfig, processes: usize) -> Option<String> {
        let images = |TrainConfig { batch, accumulate, .. }: &TrainConfig, processes: usize| {
            let images = batch * accumulate * processes;
            (images, format!("{batch} · {accumulate} · {processes} = {images}"))
        };
        let (before, was) = images(&was.train, processes);
        let (after, now) = images(&self.config.train, self.processes);
        if before == after {
            return None;
        }
        let of_all = self.config.train.batch * self.processes;
        let advice = match before.is_multiple_of(of_all) {
            true => format!("; train.accumulate = {} gives as many", before / of_all),
            false => String::new(),
        };
        let what = "images of a step, train.batch · train.accumulate · processes";
        Some(format!("{what}: {was} in the checkpoint, {now} now{advice}"))
    }

    /// The last of the `done` steps that would have had another learning rate in a run of this length, not of `steps`, and
    /// both rates.
    fn changed_rate(&self, steps: u64, done: u64) -> Option<(u64, [f64; 2])> {
        let RunConfig { optim, train, .. } = self.config;
        let rates = |step: u64| [steps, train.steps].map(|steps| (self.schedule)(optim, step, steps));
        let mut steps = (0..done).rev().map(|step| (step + 1, rates(step)));
        steps.find(|(_, [was, now])| was != now)
    }

    /// What was added to the data, removed or changed since the checkpoint in `folder`.
    fn data(&self, folder: &Path, state: &State) -> Result<Vec<String>> {
        let (Some(was), now) = (&state.data, self.data.fingerprint()) else { return Ok(vec![]) };
        if *was == now {
            return Ok(vec![]);
        }
        // The checkpoint lies in the run's folder, or in a folder in that.
        for run in folder.ancestors().skip(1).take(2) {
            if let Some(record) = DataRecord::read(&run.join(RECORD))?.filter(|record| record.fingerprint() == *was) {
                return Ok(record.differences(self.data));
            }
        }
        let (was, now) = (was.entries, now.entries);
        Ok(vec![format!("data.source: other files, {was} in the checkpoint and {now} now")])
    }
}

/// A difference, and the override that accepts it.
type Difference = (Override, String);

fn lines<'a>(differences: impl IntoIterator<Item = &'a Difference>) -> String {
    differences.into_iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n  ")
}

/// What a user can do about differences.
fn advice(differences: &[&Difference]) -> String {
    let kinds: BTreeSet<Override> = differences.iter().map(|(kind, _)| *kind).collect();
    let what = kinds.iter().map(|kind| match kind {
        Override::Settings => "another configuration",
        Override::Model => "another model",
        Override::Data => "other data",
    });
    let what = what.collect::<Vec<_>>().join(" and ");
    let names = kinds.iter().filter_map(|kind| Some(kind.to_possible_value()?.get_name().to_owned()));
    let flag = match names.collect::<Vec<_>>().join(",") {
        names if names == "settings" => "--force".to_string(),
        names => format!("--force={names}"),
    };
    let order = match kinds.contains(&Override::Data) {
        true => "; samples then come in another order: within this epoch some come twice, others not at all",
        false => "",
    };
    format!("the checkpoint is from {what}; {flag} takes it all the same{order}")
}

/// SHA-256 of the files that the run starts from, by the setting that names them: what a resumed run must share.
///
/// # Errors
/// One of them cannot be read.
pub fn init_fingerprints(config: &RunConfig) -> Result<BTreeMap<String, String>> {
    let sum = |file: PathBuf| Ok::<_, Error>(sha256(&file)?.0);
    let mut found = BTreeMap::new();
    if let Some(path) = &config.lora.init {
        found.insert("lora.init".to_string(), sum(formats::tensors_of(path)?)?);
    }
    if let Some(folder) = &config.loss.score_head_init {
        found.insert("loss.score_head_init".to_string(), sum(folder.join(CHECKPOINT_FILE))?);
    }
    Ok(found)
}

/// `data.sources` without what says where the data lie.
fn without_paths(sources: &toml::Value) -> Vec<toml::Table> {
    let paths = ["path", "captions", "labels", "panoptic", "classes"];
    let tables = sources.as_array().into_iter().flatten().filter_map(toml::Value::as_table).cloned();
    tables.map(|source| source.into_iter().filter(|(key, _)| !paths.contains(&key.as_str())).collect()).collect()
}

/// Settings of a TOML text by dotted key.
fn flat(text: &str) -> Result<BTreeMap<String, toml::Value>, toml::de::Error> {
    let mut settings = BTreeMap::new();
    for (key, value) in text.parse::<toml::Table>()? {
        match value {
            toml::Value::Table(section) => {
                settings.extend(section.into_iter().map(|(name, value)| (format!("{key}.{name}"), value)))
            }
            value => drop(settings.insert(key, value)),
        }
    }
    Ok(settings)
}
