//! A run's output for people: log, progress, metrics file, pictures, and the HTML report.
pub(crate) mod blocks;
mod curves;
pub mod heatmap;
pub(crate) mod log;
pub mod metrics;
mod page;
pub mod pca;
mod picture;
pub(crate) mod progress;
mod samples;
pub mod segmentation;
pub mod summary;
pub(crate) mod tensorboard;
mod trained_layers;
pub(crate) mod units;
mod validation;

pub use page::{Measured, RunReport, byte_size};
pub use samples::Samples;
pub use trained_layers::TrainedLayers;
pub use validation::{KeptPictures, ValidationPictures, sample_sheet, shown};
