//! How far a job is: a bar on a terminal, a line now and then elsewhere.
use super::units::duration;
use crate::system::printable::printable_line;
use crate::system::terminal::{BarTerminal, complain, is_silent};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// All bars of the program, so that log lines can be written above them.
pub(super) fn bars() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
        let target = BarTerminal::open().map(|terminal| ProgressDrawTarget::term_like_with_hz(Box::new(terminal), 20));
        MultiProgress::with_draw_target(target.unwrap_or_else(ProgressDrawTarget::hidden))
    });
    &BARS
}

/// A bar on the terminal, if there is one; see indicatif for the template.
pub(crate) fn bar(template: &str, total: u64) -> Option<ProgressBar> {
    (std::io::stderr().is_terminal() && !is_silent()).then(|| {
        let bar = bars().add(ProgressBar::new(total));
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    })
}

/// Progress of one job of a known number of parts (steps, images, …), on stderr.
pub struct Progress {
    what: &'static str,
    total: u64,
    first: u64,
    started: Instant,
    /// Absent where stderr is no terminal.
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Progress {
    /// Progress from `first` parts, done before (by the run that is resumed), to `total`; `what` is one part's name.
    pub fn new(what: &'static str, first: u64, total: u64) -> Self {
        let bar = bar("{prefix} {pos}/{len} {bar:10} {wide_msg}", total);
        let bar = bar.map(|bar| bar.with_position(first).with_prefix(what));
        Self { what, total, first, started: Instant::now(), bar, last_line: None }
    }

    /// `done` parts are done; shows `message` beside them.
    pub fn update(&mut self, done: u64, message: &str) {
        let (left, message) = (self.time_left(done), printable_line(message));
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{left}{message}"));
            bar.set_position(done);
        } else if !is_silent() && (done >= self.total || self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY))
        {
            self.last_line = Some(Instant::now());
            complain(&format!("{} {done}/{} {left}{message}", self.what, self.total));
        }
    }

    /// As `update`, for parts that come `batch` at a time: after some of a batch the time left would be wrong.
    pub fn update_batch(&mut self, done: usize, batch: usize, message: &str) {
        if done.is_multiple_of(batch) || done as u64 >= self.total {
            self.update(done as u64, message);
        }
    }

    /// From the mean time of a part so far; nothing before the first part and after the last.
    fn time_left(&self, done: u64) -> String {
        let (new, open) = (done.saturating_sub(self.first), self.total.saturating_sub(done));
        if new == 0 || open == 0 {
            return String::new();
        }
        let seconds = self.started.elapsed().as_secs_f64() / new as f64 * open as f64;
        format!("{} left, ", duration(seconds.round()))
    }
}

impl Drop for Progress {
    /// Leaves the bar as it stands: the next line is written below it.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
