//! What a run tells: log lines, progress, and its metrics file.
pub mod log;
pub mod metrics;
pub mod progress;
