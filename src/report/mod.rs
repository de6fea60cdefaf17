//! A run's output for people: metrics file, pictures, and the HTML report.
pub(crate) mod blocks;
mod curves;
pub mod heatmap;
pub mod metrics;
mod page;
pub mod pca;
mod picture;
mod samples;
pub mod segmentation;
pub mod summary;
pub(crate) mod tensorboard;
mod trained_layers;
mod validation;

pub use page::{Measured, RunReport, byte_size};
pub use samples::Samples;
pub use trained_layers::TrainedLayers;
pub use validation::{KeptPictures, ValidationPictures, sample_sheet, shown};
