//! How good drawn images are: the distance between their features and those of real images.
pub mod demo_features;
pub mod frechet;
pub mod inception;
pub mod kernel;
mod matrix;
pub mod moments;
pub mod npz;
pub mod statistics;

use crate::error::Result;
use candle_core::{Device, Tensor};
use image::RgbImage;

/// A network that makes of an image a vector of features.
pub trait FeatureNetwork: Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> &'static str;

    /// Elements of a feature vector.
    fn length(&self) -> usize;

    /// Height and width of what it sees.
    fn input(&self) -> (usize, usize);

    /// An image of any size as the network sees it: `[3, height, width]`.
    fn prepare(&self, image: &RgbImage) -> Vec<f32>;

    /// Prepared images `[batch, 3, height, width]` on `device` to features `[batch, length]`.
    fn features(&self, images: &Tensor) -> Result<Tensor>;

    fn device(&self) -> &Device;
}
