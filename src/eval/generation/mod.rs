//! Quality of generated images: distances between their features and those of real images.
pub mod demo_features;
pub(crate) mod draw;
mod feature_network;
pub mod frechet;
pub mod inception;
pub mod kernel;
pub(super) mod matrix;
pub mod moments;
pub mod npz;
pub(crate) mod statistics;

pub use draw::{GenerationOptions, evaluate};
pub use feature_network::{FeatureNetwork, FrechetMetric};

use crate::eval::turns::Turns;
use crate::system::error::Result;
use candle_core::Device;
use demo_features::DemoFeatures;
use frechet::frechet_distance;
use inception::Inception;
use serde::Serialize;
use statistics::Statistics;
use std::path::Path;

/// Distances between generated and real images, less is better; absent if not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GenerationScores {
    /// Fréchet distance over Inception-v3 features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid: Option<f64>,
    /// Kernel distance over Inception-v3 features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<f64>,
    /// Fréchet distance over the features of the demo's classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd_demo: Option<f64>,
    /// Number of images, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
}

impl GenerationScores {
    /// Name and value of each measured distance.
    pub fn named(&self) -> Vec<(&'static str, f64)> {
        let all = [("FID", self.fid), ("KID", self.kid), ("FD-demo", self.fd_demo)];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Loads the networks: FID's Inception from a weights file, the demo's classifier from a folder.
pub fn load_networks(
    inception: Option<&Path>,
    features: Option<&Path>,
    device: &Device,
) -> Result<Vec<Box<dyn FeatureNetwork>>> {
    let mut networks: Vec<Box<dyn FeatureNetwork>> = Vec::new();
    if let Some(file) = inception {
        networks.push(Box::new(Inception::load(file, device)?));
    }
    if let Some(folder) = features {
        networks.push(Box::new(DemoFeatures::load(folder, device)?));
    }
    Ok(networks)
}

/// Feature networks, and the real images' statistics under each.
pub struct ReferenceStatistics {
    /// The networks whose features are compared.
    pub networks: Vec<Box<dyn FeatureNetwork>>,
    /// The statistics of the real images, one for each network in their order.
    pub real: Vec<Statistics>,
}

impl ReferenceStatistics {
    /// Computes the features of a folder's images, `batch` at a time; once, for any number of comparisons. Of several processes
    /// rank 0 has the statistics.
    pub fn of_folder(
        networks: Vec<Box<dyn FeatureNetwork>>,
        folder: &Path,
        batch: usize,
        turns: &Turns,
    ) -> Result<Self> {
        let real = statistics::of_folder(&networks, folder, batch, "real image", turns)?;
        Ok(Self { networks, real })
    }

    /// Scores images by their statistics, one for each network. Warns if there are too few for the number of features.
    pub fn score(&self, images: &[Statistics]) -> Result<GenerationScores> {
        let mut scores = GenerationScores::default();
        for ((network, real), images) in self.networks.iter().zip(&self.real).zip(images) {
            warn_of_few(network.as_ref(), real, images);
            let distance = Some(frechet_distance(&real.gaussian()?, &images.gaussian()?)?);
            match network.metric() {
                FrechetMetric::Fid => (scores.fid, scores.kid) = (distance, real.kernel_distance(images)?),
                FrechetMetric::FdDemo => scores.fd_demo = distance,
            }
            scores.images = images.images();
        }
        Ok(scores)
    }
}

fn warn_of_few(network: &dyn FeatureNetwork, real: &Statistics, images: &Statistics) {
    let (name, length) = (network.metric().name(), network.length());
    for (what, count) in [("real", real.images()), ("generated", images.images())] {
        if let Some(count) = count.filter(|count| *count <= length) {
            tracing::warn!(
                "{name}: {count} {what} images are too few for features of length {length}: the covariance is \
                 singular and the distance comes out too large; compare it only at equal numbers of images"
            );
        }
    }
}
