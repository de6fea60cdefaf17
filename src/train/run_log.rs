//! The log of a training: metrics, TensorBoard's event file, progress, and the best validation so far.
use super::effect::counted;
use super::validation::Validation;
use crate::report::metrics::{self, MetricsFile, StepMetrics, ValidationScores};
use crate::report::tensorboard::EventFile;
use crate::system::error::Result;
use crate::system::progress::Progress;
use std::path::{Path, PathBuf};

/// The log of a training.
pub struct RunLog {
    /// The run's folder.
    pub output: PathBuf,
    pub metrics: MetricsFile,
    pub events: EventFile,
    /// The best validation so far.
    pub best: Option<ValidationScores>,
    progress: Progress,
}

impl RunLog {
    /// Goes on after `step` of `steps` in the run's folder `output`, whose metrics are cut to that step.
    pub fn open(
        output: &Path,
        metrics: MetricsFile,
        (step, steps): (u64, u64),
        validation: Option<&Validation>,
    ) -> Result<Self> {
        let best = match validation {
            // As in training: nothing is best before the first effective step, and of equals the first is.
            Some(validation) => {
                let lines = metrics::read(&output.join("metrics.jsonl"))?.into_iter().skip_while(|step| !counted(step));
                let better = |best, new| if validation.is_better(&new, &best) { new } else { best };
                lines.filter_map(|step| step.validation).reduce(better)
            }
            None => None,
        };
        let events = EventFile::new(&output.join("tensorboard"), step);
        Ok(Self { output: output.to_path_buf(), metrics, events, best, progress: Progress::new("step", step, steps) })
    }

    /// Writes a step, and shows it.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&mut self, line: &StepMetrics) -> Result<()> {
        self.metrics.write(line)?;
        self.events.write_step(line)?;
        self.progress.update(line.step, &line.to_string());
        Ok(())
    }
}
