//! The first samples of a run, drawn as they come, which its page shows.
use crate::config::RunConfig;
use crate::data::Sample;
use crate::model::weights::files::ModelFiles;
use crate::report::{SampleDrawer, SampleFigure};
use crate::system::error::{Error, Result};
use crate::system::limits::STATE;
use crate::system::paths::is_file;
use crate::system::whole_file::write_atomically;
use std::path::{Path, PathBuf};

/// Number of samples that are shown.
const COUNT: u64 = 8;

/// The samples shown so far, in a file of the run's folder: a resumed run shows those of its beginning.
pub struct ShownSamples {
    drawer: SampleDrawer,
    file: PathBuf,
    /// The samples so far.
    pub figures: Vec<SampleFigure>,
    /// How many of them the file holds.
    written: usize,
}

impl ShownSamples {
    /// Those of the run in `output`, of which `seen` samples have been trained on.
    ///
    /// # Errors
    /// A tokenizer or the file cannot be read.
    pub fn open(config: &RunConfig, files: &ModelFiles, output: &Path, seen: u64) -> Result<Self> {
        let file = output.join("samples").join("training.json");
        let mut figures = if seen == 0 { vec![] } else { read(&file)? };
        figures.retain(|figure| figure.number < seen);
        let (drawer, written) = (SampleDrawer::open(config, files)?, figures.len());
        Ok(Self { drawer, file, figures, written })
    }

    /// How many of the samples from number `first` on are to be shown.
    pub fn wanted(first: u64) -> usize {
        COUNT.saturating_sub(first) as usize
    }

    /// Adds samples, the first of which is number `first` of the run, as far as they are to be shown.
    ///
    /// # Errors
    /// A sample cannot be drawn.
    pub fn add(&mut self, samples: &[Sample], first: u64) -> Result<()> {
        for (number, sample) in (first..COUNT).zip(samples) {
            self.figures.push(self.drawer.draw(sample, number)?);
        }
        Ok(())
    }

    /// Writes the file where samples came since it was written.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self) -> Result<()> {
        if self.written == self.figures.len() {
            return Ok(());
        }
        let text = serde_json::to_vec(&self.figures).map_err(|e| Error::file(&self.file, e))?;
        self.written = self.figures.len();
        write_atomically(&self.file, |out| out.write_all(&text))
    }
}

fn read(file: &Path) -> Result<Vec<SampleFigure>> {
    if !is_file(file)? {
        return Ok(vec![]);
    }
    let text = STATE.read(file).map_err(|e| Error::file(file, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::file(file, format!("damaged: {e}; the run goes on without it if it is removed")))
}
