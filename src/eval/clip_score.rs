//! CLIPScore: image-caption similarity by a CLIP model (Hessel et al., 2021).
use crate::data::codec::photograph::check_shape;
use crate::data::codec::resize::bicubic;
use crate::model::clip_image::{ClipImageConfig, ClipImageModel};
use crate::model::text::clip::{ClipConfig, ClipTextModel, Pooling};
use crate::model::text::tokenizer::{CLIP_TOKENS, TextTokenizer};
use crate::model::weights::Weights;
use crate::system::error::{Error, Result};
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use crate::system::paths::is_file;
use candle_core::{D, DType, Device, Tensor};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// CLIP's `config.json`.
#[derive(Deserialize)]
struct ClipModelConfig {
    #[serde(default = "usual_projection")]
    projection_dim: usize,
    #[serde(default)]
    text_config: Map<String, Value>,
    #[serde(default)]
    vision_config: ClipImageConfig,
}

fn usual_projection() -> usize {
    512
}

impl ClipModelConfig {
    /// The text model's sizes; missing keys have transformers' defaults.
    fn text(&self) -> Result<ClipConfig, serde_json::Error> {
        let mut all = json!({
            "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
            "num_attention_heads": 8, "max_position_embeddings": CLIP_TOKENS, "hidden_act": "quick_gelu",
        });
        for (key, value) in &self.text_config {
            all[key] = value.clone();
        }
        all["projection_dim"] = json!(self.projection_dim);
        serde_json::from_value(all)
    }
}

/// Image preprocessing (`preprocessor_config.json`).
#[derive(Deserialize)]
#[serde(default)]
struct Preprocessing {
    size: Side,
    crop_size: Side,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    /// PIL's code of the resampling filter.
    resample: u32,
}

/// A side in pixels, in one of transformers' three notations.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Side {
    Number(u32),
    Shortest { shortest_edge: u32 },
    Square { height: u32, width: u32 },
}

/// Greatest accepted shortest side after resizing. CLIP models use 224 to 336.
const LARGEST_SIDE: u32 = 4096;

/// PIL's code of the bicubic filter.
const BICUBIC: u32 = 3;

impl Default for Preprocessing {
    fn default() -> Self {
        Self {
            size: Side::Shortest { shortest_edge: 224 },
            crop_size: Side::Square { height: 224, width: 224 },
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            resample: BICUBIC,
        }
    }
}

/// A CLIP model that scores images.
pub struct ClipScorer {
    text: ClipTextModel,
    image: ClipImageModel,
    tokenizer: TextTokenizer,
    preprocessing: Preprocessing,
    /// The shortest side after resizing.
    shortest: u32,
    device: Device,
}

/// Similarity of images and captions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClipScores {
    /// Mean over images of `2.5 · max(cosine, 0)`.
    pub clip_score: f64,
    /// Mean over images of the cosine similarity.
    pub cosine: f64,
    /// How many images were scored.
    pub images: u64,
}

impl ClipScorer {
    /// Opens a folder in the layout of transformers' `CLIPModel` with a tokenizer and an optional
    /// `preprocessor_config.json`. Computes in f32.
    ///
    /// # Errors
    /// A file is missing or malformed, or the preprocessing is not CLIP's.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let file = folder.join("config.json");
        let config: ClipModelConfig = read_json(&file, MODEL_JSON)?;
        let text = config.text().map_err(|problem| Error::file(&file, format!("text_config: {problem}")))?;
        let weights = Weights::open_part(folder, "model", DType::F32, device)?;
        weights.ignore("logit_scale");
        let text = ClipTextModel::from_weights(text, file.clone(), Pooling::Projected, &weights, DType::F32)?;
        let image = ClipImageModel::from_weights(config.vision_config, config.projection_dim, &file, &weights)?;
        weights.finish()?;
        let file = folder.join("preprocessor_config.json");
        let preprocessing: Preprocessing =
            if is_file(&file)? { read_json(&file, MODEL_JSON)? } else { Preprocessing::default() };
        let failed = |problem: String| Err(Error::file(&file, problem));
        let crop = match preprocessing.crop_size {
            Side::Number(side) | Side::Shortest { shortest_edge: side } => side,
            Side::Square { height, width } if height == width => height,
            Side::Square { .. } => return failed("crop_size is no square".into()),
        };
        if crop as usize != image.image_size() {
            return failed(format!("crop_size is {crop}, but the model's image_size is {}", image.image_size()));
        }
        let shortest = match preprocessing.size {
            Side::Number(side) | Side::Shortest { shortest_edge: side } if (crop..=LARGEST_SIDE).contains(&side) => {
                side
            }
            _ => return failed(format!("size is not the shortest edge, or not from crop_size to {LARGEST_SIDE}")),
        };
        let Preprocessing { image_mean, image_std, resample, .. } = &preprocessing;
        if !image_mean.iter().chain(image_std).all(|value| value.is_finite()) || image_std.contains(&0.0) {
            return failed("image_mean or image_std is no number to shift or divide by".into());
        }
        if *resample != BICUBIC {
            return failed(format!("resample is {resample}, expected {BICUBIC} (bicubic)"));
        }
        let tokenizer = TextTokenizer::open_clip(folder)?;
        Ok(Self { text, image, tokenizer, preprocessing, shortest, device: device.clone() })
    }

    /// Cosine similarity of each image and its caption; there must be as many captions as images.
    ///
    /// # Errors
    /// The features are not finite.
    pub fn cosines(&self, images: &[RgbImage], captions: &[&str]) -> Result<Vec<f64>> {
        let images = images.iter().map(|image| self.prepare(image)).collect::<Result<Vec<_>>>()?;
        let images = unit(&self.image.forward(&Tensor::stack(&images, 0)?)?)?;
        let ids =
            captions.iter().map(|caption| self.tokenizer.encode(caption, CLIP_TOKENS)).collect::<Result<Vec<_>>>()?;
        let texts = unit(&self.text.forward(&ids)?.pooled)?;
        let cosines: Vec<f64> = (images * texts)?.to_dtype(DType::F64)?.sum(D::Minus1)?.to_vec1()?;
        match cosines.iter().all(|cosine| cosine.is_finite()) {
            true => Ok(cosines),
            false => Err(Error::Failed("the CLIP model's features are not finite".into())),
        }
    }

    /// The model's input `[3, side, side]`: shortest side resized, centre cropped, normalised (transformers:
    /// `CLIPImageProcessor`).
    fn prepare(&self, image: &RgbImage) -> Result<Tensor> {
        let (width, height) = image.dimensions();
        check_shape((width as usize, height as usize)).map_err(Error::Failed)?;
        let longer = |side: u32, other: u32| (u64::from(self.shortest) * u64::from(side) / u64::from(other)) as u32;
        let (width, height) = match width <= height {
            true => (self.shortest, longer(height, width)),
            false => (longer(width, height), self.shortest),
        };
        let resized = bicubic(image, width, height);
        let side = self.image.image_size() as u32;
        let (left, top) = ((width - side) / 2, (height - side) / 2);
        let Preprocessing { image_mean, image_std, .. } = &self.preprocessing;
        let mut values = Vec::with_capacity(3 * (side * side) as usize);
        for channel in 0..3 {
            for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
                let value = f32::from(resized.get_pixel(left + x, top + y)[channel]) / 255.0;
                values.push((value - image_mean[channel]) / image_std[channel]);
            }
        }
        let side = side as usize;
        Ok(Tensor::from_vec(values, (3, side, side), &self.device)?)
    }
}

/// Normalises rows to length 1.
fn unit(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.broadcast_div(&rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
}

/// Averages cosine similarities.
///
/// # Errors
/// There is no image.
pub fn clip_scores(cosines: &[f64]) -> Result<ClipScores> {
    if cosines.is_empty() {
        return Err(Error::Failed("there is no image to score".into()));
    }
    let mean = |of: fn(f64) -> f64| cosines.iter().copied().map(of).sum::<f64>() / cosines.len() as f64;
    Ok(ClipScores {
        clip_score: mean(|cosine| 2.5 * cosine.max(0.0)),
        cosine: mean(|cosine| cosine),
        images: cosines.len() as u64,
    })
}
