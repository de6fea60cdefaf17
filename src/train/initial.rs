//! What a run starts from in place of fresh values: another run's adapter and score head.
use super::checkpoint::Checkpoint;
use super::parameters::Parameters;
use crate::config::RunConfig;
use crate::model::adapters::formats;
use crate::model::adapters::lora::{Adapter, Lora};
use crate::model::families::sd3::MmDit;
use crate::model::text::TextEmbedding;
use crate::system::error::{Error, Result};
use candle_core::Device;
use std::path::{Path, PathBuf};

/// What is trained, as it is at the start: fresh, or from what the config names; `empty_prompt` where a prompt is learnt.
///
/// # Errors
/// No layer matches the configuration; what it names does not fit.
pub fn parameters(
    config: &RunConfig,
    model: &mut MmDit,
    empty_prompt: Option<&TextEmbedding>,
    device: &Device,
) -> Result<Parameters> {
    let mut parameters = Parameters::new(config, model, device)?;
    if let Some(empty) = empty_prompt {
        parameters.add_prompt(empty)?;
    }
    load(config, &parameters)?;
    Ok(parameters)
}

/// What a run starts from, for people: a line each; nothing where all is fresh.
pub fn describe(config: &RunConfig) -> String {
    let named = [("LoRA", &config.lora.init), ("score head", &config.loss.score_head_init)];
    let line =
        |(what, path): (&str, &Option<PathBuf>)| Some(format!("\nthe {what} starts from {}", path.as_ref()?.display()));
    named.into_iter().filter_map(line).collect()
}

/// Overwrites the fresh parameters with what the config names.
///
/// # Errors
/// The adapter is not one of the configured targets, layers, rank and alpha: all that differs is named; the checkpoint
/// has no score head, or of another shape.
fn load(config: &RunConfig, parameters: &Parameters) -> Result<()> {
    if let Some(path) = &config.lora.init {
        let adapter = formats::read(path)?;
        let trained = parameters.adapter();
        let differences = differences(&adapter, &trained);
        if !differences.is_empty() {
            let problem = format!("is not an adapter that lora.init can start from:\n  {}", differences.join("\n  "));
            return Err(Error::Usage(format!("lora.init: {} {problem}", path.display())));
        }
        for parameter in &parameters.all {
            let module = |suffix: &str| parameter.name.strip_prefix("lora.")?.strip_suffix(suffix);
            let values = match (module(".down"), module(".up")) {
                (Some(module), _) => adapter.get(module).map(|lora| &lora.down),
                (_, Some(module)) => adapter.get(module).map(|lora| &lora.up),
                _ => None,
            };
            values.map_or(Ok(()), |values| parameter.set(values)).map_err(|e| Error::file(path, e))?;
        }
    }
    if let Some(folder) = config.loss.score_head_init.as_ref().filter(|_| parameters.score_head().is_some()) {
        load_score_head(folder, parameters)?;
    }
    Ok(())
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

/// How an adapter differs from the one that is trained, a line each.
fn differences(adapter: &Adapter, trained: &Adapter) -> Vec<String> {
    let mut lines = vec![];
    let mut modules = |of: &Adapter, other: &Adapter, what: &str| {
        let names: Vec<&String> = of.keys().filter(|name| !other.contains_key(*name)).collect();
        if let Some(first) = names.first() {
            lines.push(format!("{} modules {what}, such as {first} (lora.targets, lora.layers)", names.len()));
        }
    };
    modules(trained, adapter, "are to be trained and not in the file");
    modules(adapter, trained, "are in the file and not to be trained");
    let pairs = || adapter.iter().filter_map(|(name, lora)| Some((name, lora, trained.get(name)?)));
    let mut first_of = |differs: fn(&Lora, &Lora) -> bool, say: &dyn Fn(&Lora, &Lora) -> String| {
        let mut found = pairs().filter(|(_, lora, trained)| differs(lora, trained));
        if let Some((name, lora, trained)) = found.next() {
            let more = found.count();
            let others = if more > 0 { format!(", and {more} others") } else { String::new() };
            lines.push(format!("{name}{others}: {}", say(lora, trained)));
        }
    };
    first_of(|a, b| a.rank() != b.rank(), &|a, b| format!("rank {}, lora.rank is {}", a.rank(), b.rank()));
    first_of(|a, b| a.rank() == b.rank() && a.alpha != b.alpha, &|a, b| {
        format!(
            "alpha {}, lora.alpha is {} (a file that says none has its rank; `export --format peft` keeps alpha)",
            a.alpha, b.alpha
        )
    });
    first_of(|a, b| a.rank() == b.rank() && (a.down.dims() != b.down.dims() || a.up.dims() != b.up.dims()), &|a, b| {
        let shapes = |lora: &Lora| format!("A {:?} and B {:?}", lora.down.dims(), lora.up.dims());
        format!("{}, the model's layer has {}", shapes(a), shapes(b))
    });
    lines
}
