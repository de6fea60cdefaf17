//! What the first samples of a run show, before its first step: masks without an effect and captions without a word end
//! the run, and prompts that the text encoders cut are counted.
//!
//! The samples are those of the run's beginning at every resume, too, so that it finds the same.
use super::cut_prompts::CutPrompts;
use super::mask_census::MaskCensus;
use crate::config::{Allowed, DataConfig, DataFormat, ModelConfig, RunConfig};
use crate::data::{DataSet, Loader};
use crate::model::text::TextEncoders;
use crate::model::weights::files::ModelFiles;
use crate::system::error::{Error, Result};
use candle_core::Device;

/// Samples that the masks are judged by.
const JUDGED: u64 = 64;
/// Samples whose prompts are read.
const READ: u64 = 100;

/// [`examine`] without a run: of the model only the tokenizers are read.
///
/// # Errors
/// Those of [`examine`]; a tokenizer cannot be read.
pub fn check(config: &RunConfig, data: &DataSet) -> Result<Option<String>> {
    // Without a sample that can be read, nothing is asked of the tokenizers.
    Loader::of_annotations(data, config.seed)?.next_of_epoch()?;
    let ModelConfig { text_encoders, max_sequence_length, .. } = &config.model;
    let files = ModelFiles::of(&config.model)?;
    let encoders = TextEncoders::without_weights(&files, text_encoders, *max_sequence_length, &Device::Cpu)?;
    let (line, broken) = examine(config, data, &encoders, config.train.samples(1))?;
    if let Some(broken) = broken {
        tracing::warn!("{broken}");
    }
    Ok(line)
}

/// Reads the first samples of `data` in a run of `trained` samples, within its first epoch, and warns of what the encoders cut
/// of their prompts. Returns a line about their masks, where the run uses masks, and one about broken samples.
///
/// # Errors
/// No mask has an effect, or no caption a word, and `data.allow` does not accept that; so many samples are broken that they
/// would end the run; what the data cannot be read for.
pub fn examine(
    config: &RunConfig,
    data: &DataSet,
    encoders: &TextEncoders,
    trained: u64,
) -> Result<(Option<String>, Option<String>)> {
    let mut loader = Loader::of_annotations(data, config.seed)?;
    let mut census = MaskCensus::default();
    let mut prompts = CutPrompts::default();
    // Prompts of class names have none where their masks are missing, which the census says.
    let is_captioned = |settings: &DataConfig| settings.format != DataFormat::Coco && settings.classes.is_none();
    let has_captions = data.readers.iter().all(|reader| is_captioned(&reader.config));
    let has_binary_masks = data.readers.iter().any(|reader| reader.masks.is_binary);
    let data = &data.config;
    let mut is_silent = data.has_prompts && has_captions && trained > 0;
    for number in 0..trained.min(READ) {
        let Some(decoded) = loader.next_of_epoch()? else { break };
        let sample = &decoded.sample;
        is_silent &= sample.prompt.is_empty();
        if data.has_prompts {
            prompts.add(number, &sample.key, &sample.prompt, encoders)?;
        }
        if number < JUDGED && config.loss.uses_masks() {
            let spans = match sample.classes.is_empty() || !data.has_prompts {
                true => vec![],
                false => encoders.token_spans(&sample.classes.iter().map(String::as_str).collect::<Vec<_>>())?,
            };
            census.add(&decoded, &spans, data.has_prompts);
        }
    }
    if is_silent && !data.allow.contains(&Allowed::CaptionsEmpty) {
        let problem = "the captions of the first samples are all empty";
        return Err(Error::Failed(format!("{problem}; data.allow = [\"captions_empty\"] trains without words")));
    }
    prompts.warn(&format!("first {}", prompts.count));
    match census.problem(JUDGED, data) {
        Some(problem) if !data.allow.contains(&Allowed::MasksUnused) => Err(Error::Failed(problem)),
        _ => {
            let kind = if has_binary_masks { " black-and-white" } else { "" };
            Ok((census.line(kind), loader.broken()))
        }
    }
}
