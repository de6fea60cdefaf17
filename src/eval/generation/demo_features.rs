//! The demo's small classifier, the feature network of `FD-demo`; its weights ship with the program.
use super::{FeatureNetwork, FrechetMetric};
use crate::data::codec::resize::bilinear;
use crate::model::weights::Weights;
use crate::model::weights::sizes;
use crate::ops::conv2d::Conv2d;
use crate::system::error::{Error, Result};
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde::Deserialize;
use std::path::Path;

/// Greatest accepted input side; bounds the memory of a batch.
const LARGEST_SIDE: usize = 512;

/// `config.json` beside the weights.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DemoFeaturesConfig {
    /// Side of the input images.
    size: usize,
    /// Output channels of each convolution; the last is the number of features.
    channels: Vec<usize>,
    /// Class names.
    classes: Vec<String>,
}

/// 3×3 convolutions of stride 2 with ReLU, then the mean over positions.
pub struct DemoFeatures {
    convolutions: Vec<Conv2d>,
    size: usize,
    length: usize,
    device: Device,
}

impl DemoFeatures {
    /// Loads `config.json` and `model.safetensors` of a folder such as `checkpoints/demo-features`.
    ///
    /// # Errors
    /// A file is missing, or a tensor does not match the configuration.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let file = folder.join("config.json");
        let config: DemoFeaturesConfig = read_json(&file, MODEL_JSON)?;
        if config.channels.is_empty() || !(1..=LARGEST_SIDE).contains(&config.size) {
            return Err(Error::file(&file, format!("expected a size from 1 to {LARGEST_SIDE}, and channels")));
        }
        let channels = config.channels.iter().map(|channels| ("channels", *channels));
        sizes::check(&file, &channels.collect::<Vec<_>>())?;
        let file = folder.join("model.safetensors");
        let weights = Weights::open(&file, std::slice::from_ref(&file), DType::F32, device)?;
        let mut convolutions = Vec::new();
        let mut length = 3;
        for (index, &output) in config.channels.iter().enumerate() {
            let weight = weights.get(&format!("convolutions.{index}.weight"), (output, length, 3, 3))?;
            let bias = weights.get(&format!("convolutions.{index}.bias"), output)?;
            convolutions.push(Conv2d::padded(weight, bias, 2, (1, 1))?.with_relu());
            length = output;
        }
        // The classifier's head is needed for training only.
        weights.get("classifier.weight", (config.classes.len(), length))?;
        weights.get("classifier.bias", config.classes.len())?;
        weights.finish()?;
        Ok(Self { convolutions, size: config.size, length, device: device.clone() })
    }
}

impl FeatureNetwork for DemoFeatures {
    fn metric(&self) -> FrechetMetric {
        FrechetMetric::FdDemo
    }

    fn length(&self) -> usize {
        self.length
    }

    /// Resized as Pillow does, values from −1 to 1.
    fn prepare(&self, image: &RgbImage) -> Vec<f32> {
        let small = bilinear(image, self.size as u32, self.size as u32);
        let plane = |channel: usize| small.as_raw().iter().skip(channel).step_by(3);
        (0..3).flat_map(plane).map(|byte| f32::from(*byte) / 127.5 - 1.0).collect()
    }

    fn features(&self, pixels: Vec<f32>, images: usize) -> Result<Tensor> {
        let mut x = Tensor::from_vec(pixels, (images, 3, self.size, self.size), &self.device)?;
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?;
        }
        Ok(x.mean((2, 3))?)
    }
}
