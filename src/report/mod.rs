//! What a run tells people: log lines, progress, its metrics file, pictures.
pub mod heatmap;
pub mod log;
pub mod metrics;
pub mod progress;
