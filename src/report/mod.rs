//! A run's output for people: metrics file, pictures, and the HTML report.
pub(crate) mod blocks;
mod curves;
pub mod heatmap;
mod inspect;
pub mod metrics;
mod page;
pub mod pca;
mod picture;
mod raw_values;
mod samples;
pub mod segmentation;
pub mod summary;
pub(crate) mod tensorboard;
pub(crate) mod told_example;
mod trained_layers;
mod training_sample;
mod validation;

pub use inspect::Inspection;
pub use page::{Measured, RunReport, byte_size};
pub use samples::DrawnSamples;
pub use trained_layers::TrainedLayers;
pub use training_sample::{SampleDrawer, SampleFigure};
pub use validation::{KeptPictures, ValidationPictures, sample_sheet, shown};
