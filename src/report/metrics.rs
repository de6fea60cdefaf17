//! `metrics.jsonl`: one line for each step, consistent with the checkpoint that a run is resumed from.
use crate::system::error::{Error, Result};
use crate::system::units::rate;
use crate::system::whole_file::write_atomically;
use serde::{Deserialize, Deserializer, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Scores on held-out data after a step; absent if not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ValidationScores {
    /// Mean intersection over union of the expert's attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miou: Option<f64>,
    /// Share of labelled pixels that are predicted right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixel_accuracy: Option<f64>,
    /// Flow loss on held-out images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_flow: Option<f64>,
}

/// Metrics of one optimizer step. Values that are not finite are written as `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Steps done, including this one.
    pub step: u64,
    /// Completed epochs.
    pub epoch: u64,
    /// Images seen, including this step's.
    pub samples: u64,
    /// The weighted sum of the loss terms. Like all terms, the mean over the step's forward passes.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Flow-matching loss. Like all terms, without its weight.
    #[serde(deserialize_with = "number")]
    pub flow: f64,
    /// Focal loss, without its weight.
    #[serde(deserialize_with = "number")]
    pub focal: f64,
    /// Dice loss, without its weight.
    #[serde(deserialize_with = "number")]
    pub dice: f64,
    /// Softmax alignment loss, if trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub align: Option<f64>,
    /// Learning rate of the score head.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Learning rate of the LoRA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_lr: Option<f64>,
    /// Norm of the gradient over all trained parameters, before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Images a second.
    #[serde(deserialize_with = "number")]
    pub images_per_s: f64,
    /// Wall time of the step.
    #[serde(deserialize_with = "number")]
    pub seconds: f64,
    /// The part of `seconds` spent waiting for data.
    #[serde(deserialize_with = "number")]
    pub data_wait_s: f64,
    /// Validation after the step; its time is not part of `seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationScores>,
    /// How the step went at several processes; absent of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<ProcessMetrics>,
}

/// How a step went at several processes: pairs are of the least and the most.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessMetrics {
    /// Number of processes.
    pub count: usize,
    /// Rank of that which was done first, without waiting for others and for data.
    pub fastest: usize,
    /// Rank of that which was done last.
    pub slowest: usize,
    /// Their times.
    pub busy_s: [f64; 2],
    /// Times spent waiting for data.
    pub data_wait_s: [f64; 2],
    /// Memory that the processes have.
    pub memory_bytes: [u64; 2],
    /// Bytes that all have sent each other since they were started.
    pub sent_bytes: u64,
}

/// A number, or `null` for one that is not finite.
fn number<'de, D: Deserializer<'de>>(input: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or(f64::NAN))
}

/// Loss terms and speed for the progress bar.
impl std::fmt::Display for StepMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "loss {:.4}, flow {:.4}", self.loss, self.flow)?;
        match self.align {
            Some(align) => write!(f, ", align {align:.4}")?,
            None => write!(f, ", focal {:.4}, dice {:.4}", self.focal, self.dice)?,
        }
        let wait = if self.seconds > 0.0 { 100.0 * self.data_wait_s / self.seconds } else { 0.0 };
        write!(f, ", {}, data wait {wait:.0} %", rate(self.images_per_s))
    }
}

/// The open metrics file of a run.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens `path` to continue after `step`: later lines and an incomplete last line are dropped atomically. Step 0
    /// starts an empty file.
    ///
    /// # Errors
    /// The file cannot be read or written, or a line before the last is not a step's metrics.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let old = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::file(path, e)),
        };
        let kept = lines_to_keep(&old, step).map_err(|problem| Error::file(path, problem))?;
        write_atomically(path, |out| out.write_all(kept))?;
        let file = File::options().append(true).open(path).map_err(|e| Error::file(path, e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends a line. It is passed to the operating system at once, so that it outlives a killed run.
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<()> {
        let mut line = serde_json::to_string(metrics).map_err(|e| Error::file(&self.path, e))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::file(&self.path, format!("cannot write: {e}")))
    }

    /// Syncs all lines to disk, as a checkpoint requires before it is written.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::file(&self.path, format!("cannot write: {e}")))
    }
}

/// Reads the steps of a metrics file for display. Lines that do not parse are skipped with a warning.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Vec<StepMetrics>> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    let mut steps = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).split(b'\n')) {
        match serde_json::from_slice(&line.map_err(|e| Error::file(path, e))?) {
            Ok(step) => steps.push(step),
            Err(e) => tracing::warn!("{}: line {number}: not the metrics of a step: {e}", path.display()),
        }
    }
    Ok(steps)
}

/// The complete lines up to `step`.
fn lines_to_keep(text: &[u8], step: u64) -> Result<&[u8], String> {
    let mut end = 0;
    for (number, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let found = serde_json::from_slice::<serde_json::Value>(line).ok();
        let found = found.filter(|_| line.ends_with(b"\n")).and_then(|value| value.get("step")?.as_u64());
        match found {
            Some(found) if found <= step => end += line.len(),
            Some(_) => break,
            None if end + line.len() == text.len() => break,
            None => return Err(format!("line {}: not the metrics of a step", number + 1)),
        }
    }
    Ok(&text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).expect("metrics");
        text.lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).expect("a line")["step"].as_u64().expect("step"))
            .collect()
    }

    #[test]
    fn resuming_cuts_off_later_lines_and_a_torn_one() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile::open(&path, 0).expect("open");
        for step in 1..=5 {
            file.write(&StepMetrics { step, loss: 0.1 + 0.2, ..Default::default() }).expect("write");
        }
        let whole = std::fs::read_to_string(&path).expect("metrics");
        assert!(whole.contains("0.30000000000000004") && !whole.contains("align"), "{whole}");
        std::fs::write(&path, &whole[..whole.len() - 7]).expect("tear");
        drop(MetricsFile::open(&path, 5).expect("open"));
        assert_eq!(steps(&path), [1, 2, 3, 4]);
        let mut file = MetricsFile::open(&path, 2).expect("open");
        file.write(&StepMetrics { step: 3, loss: f64::NAN, ..Default::default() }).expect("write");
        assert_eq!(steps(&path), [1, 2, 3]);
        assert!(std::fs::read_to_string(&path).expect("metrics").contains("\"loss\":null"));
        drop(MetricsFile::open(&path, 0).expect("open"));
        assert_eq!(steps(&path), [0u64; 0]);
    }

    #[test]
    fn what_was_written_is_read_and_a_broken_line_passed_over() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile::open(&path, 0).expect("open");
        let first = StepMetrics { step: 1, loss: 0.1 + 0.2, align: Some(1e-9), ..Default::default() };
        file.write(&first).expect("write");
        file.write(&StepMetrics { step: 2, loss: f64::INFINITY, ..Default::default() }).expect("write");
        let mut text = std::fs::read(&path).expect("metrics");
        text.extend(b"{\"step\":3,\"lo\xff\n{\"step\":4");
        std::fs::write(&path, text).expect("metrics");
        let steps = read(&path).expect("steps");
        assert_eq!(steps[0], first);
        assert!(steps.len() == 2 && steps[1].step == 2 && steps[1].loss.is_nan());
        assert!(read(&folder.path().join("none")).is_err());
    }

    /// Also across a resume: a score that were read one unit lower would lose to an equal one.
    #[test]
    fn numbers_come_back_to_the_bit() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile::open(&path, 0).expect("open");
        let mut random = crate::sample::noise::generator(5, &[2]);
        let mut number = |step| match step % 3 {
            0 => rand::Rng::random_range(&mut random, 0.0..1.0),
            1 => f64::from_bits(rand::Rng::random::<u64>(&mut random)),
            _ => rand::Rng::random_range(&mut random, 0.0..1e6) / 1e9,
        };
        let finite = |number: f64| if number.is_finite() { number } else { 0.108_564_179_472_900_85 };
        let steps: Vec<StepMetrics> = (1..=3000)
            .map(|step| StepMetrics {
                step,
                loss: finite(number(step)),
                align: Some(finite(number(step))),
                validation: Some(ValidationScores { miou: Some(finite(number(step))), ..Default::default() }),
                ..Default::default()
            })
            .collect();
        steps.iter().for_each(|step| file.write(step).expect("write"));
        let bits = |steps: &[StepMetrics]| -> Vec<Option<u64>> {
            let miou = |step: &StepMetrics| step.validation.as_ref().and_then(|scores| scores.miou);
            steps.iter().flat_map(|s| [Some(s.loss), s.align, miou(s)]).map(|v| v.map(f64::to_bits)).collect()
        };
        assert_eq!(bits(&read(&path).expect("steps")), bits(&steps));
    }

    #[test]
    fn a_slow_step_shows_the_time_of_an_image() {
        let step = StepMetrics { images_per_s: 4.0 / 612.0, seconds: 612.0, data_wait_s: 6.12, ..Default::default() };
        let shown = "loss 0.0000, flow 0.0000, focal 0.0000, dice 0.0000, 153.0 s/image, data wait 1 %";
        assert_eq!(step.to_string(), shown);
    }

    #[test]
    fn a_foreign_line_is_named() {
        assert_eq!(
            lines_to_keep(b"{\"step\":1}\nhello\n{\"step\":2}\n", 9),
            Err("line 2: not the metrics of a step".into())
        );
    }
}
