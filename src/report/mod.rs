//! What a run tells people: log lines, progress, its metrics file, pictures, and the page that shows it all.
pub mod blocks;
mod curves;
pub mod heatmap;
pub mod log;
pub mod metrics;
mod page;
pub mod pca;
mod picture;
pub mod progress;
mod samples;
pub mod segmentation;
pub mod summary;
pub mod tensorboard;
pub mod units;
mod validation;

pub use page::{Measured, RunReport, TrainedLayers, byte_size};
pub use samples::Samples;
pub use validation::{Kept as KeptPictures, ValidationPictures, sample_sheet, shown};
