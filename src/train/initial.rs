//! What a run starts from in place of fresh values: another run's adapter and score head.
use super::checkpoint::Checkpoint;
use super::parameters::Parameters;
use crate::config::RunConfig;
use crate::model::adapters::Adapters;
use crate::model::adapters::formats;
use crate::model::families::Transformer;
use crate::model::text::TextEmbedding;
use crate::system::error::{Error, Result};
use candle_core::Device;
use std::path::{Path, PathBuf};

/// What is trained, as it is at the start: fresh, or from what the config names; `empty_prompt` where a prompt is learnt.
///
/// # Errors
/// No layer matches the configuration; the adapter is not one of the configured targets, layers, rank and alpha: all that
/// differs is named; the checkpoint has no score head, or of another shape.
pub fn parameters(
    config: &RunConfig,
    model: &mut Transformer,
    empty_prompt: Option<&TextEmbedding>,
    device: &Device,
) -> Result<Parameters> {
    let mut parameters = Parameters::new(config, model, device)?;
    if let Some(empty) = empty_prompt {
        parameters.add_prompt(empty)?;
    }
    if let Some(path) = &config.lora.init {
        let adapters = formats::read(path)?;
        let differences = differences(&adapters, &parameters.adapters()?);
        if !differences.is_empty() {
            let problem = format!("is not an adapter that lora.init can start from:\n  {}", differences.join("\n  "));
            return Err(Error::Usage(format!("lora.init: {} {problem}", path.display())));
        }
        parameters.set_adapters(&adapters).map_err(|e| Error::file(path, e))?;
    }
    if let Some(folder) = config.loss.score_head_init.as_ref().filter(|_| parameters.score_head().is_some()) {
        load_score_head(folder, &parameters)?;
    }
    Ok(parameters)
}

/// What a run starts from, for people: a line each; nothing where all is fresh.
pub fn describe(config: &RunConfig) -> String {
    let named = [("LoRA", &config.lora.init), ("score head", &config.loss.score_head_init)];
    let line =
        |(what, path): (&str, &Option<PathBuf>)| Some(format!("\nthe {what} starts from {}", path.as_ref()?.display()));
    named.into_iter().filter_map(line).collect()
}

fn load_score_head(folder: &Path, parameters: &Parameters) -> Result<()> {
    let tensors = Checkpoint::read(folder)?.adapter;
    for parameter in parameters.all.iter().filter(|parameter| parameter.name.starts_with("score_head.")) {
        let Some(values) = tensors.get(&parameter.name) else {
            return Err(Error::file(folder, format!("has no score head: {} is missing", parameter.name)));
        };
        parameter.set(values).map_err(|e| Error::file(folder, e))?;
    }
    Ok(())
}

/// How adapters differ from those that are trained, a line each.
fn differences(adapters: &Adapters, trained: &Adapters) -> Vec<String> {
    let mut lines = vec![];
    let mut layers = |of: &Adapters, other: &Adapters, what: &str| {
        let names: Vec<&String> = of.keys().filter(|name| !other.contains_key(*name)).collect();
        if let Some(first) = names.first() {
            lines.push(format!("{} modules {what}, such as {first} (lora.targets, lora.layers)", names.len()));
        }
    };
    layers(trained, adapters, "are to be trained and not in the file");
    layers(adapters, trained, "are in the file and not to be trained");
    // The first layer that differs by a setting, and how many others do.
    let mut settings: Vec<(&str, &String, String, usize)> = vec![];
    for (name, adapter) in adapters {
        let found = trained.get(name).map_or(vec![], |trained| adapter.differences(trained.as_ref()));
        for (setting, problem) in found {
            match settings.iter_mut().find(|(known, ..)| *known == setting) {
                Some((.., others)) => *others += 1,
                None => settings.push((setting, name, problem, 0)),
            }
        }
    }
    let line = |(_, name, problem, others): (&str, &String, String, usize)| {
        let others = if others > 0 { format!(", and {others} others") } else { String::new() };
        format!("{name}{others}: {problem}")
    };
    lines.extend(settings.into_iter().map(line));
    lines
}
