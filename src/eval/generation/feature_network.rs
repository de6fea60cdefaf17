//! The interface of networks whose features are compared.
use crate::system::error::Result;
use candle_core::Tensor;
use image::RgbImage;

/// A network that computes a feature vector of an image.
pub trait FeatureNetwork: Send + Sync {
    /// The distance that is measured over these features.
    fn metric(&self) -> FrechetMetric;

    /// Length of a feature vector.
    fn length(&self) -> usize;

    /// Preprocesses an image of any size: `[3, height, width]` of its input.
    fn prepare(&self, image: &RgbImage) -> Vec<f32>;

    /// Features `[images, length]` of so many preprocessed images, one after the other in `pixels`.
    fn features(&self, pixels: Vec<f32>, images: usize) -> Result<Tensor>;
}

/// The name of the Fréchet distance between a network's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrechetMetric {
    /// FID's Inception-v3, which also yields the kernel distance KID.
    Fid,
    /// The demo's classifier.
    FdDemo,
}

impl FrechetMetric {
    /// The name that is printed and written, such as `fid`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fid => "FID",
            Self::FdDemo => "FD-demo",
        }
    }
}
