//! The image model of CLIP with its projection (transformers: `CLIPVisionModelWithProjection`).
use super::layers::{LayerNorm, Linear};
use super::text::clip_layer::{ClipActivation, ClipLayer, LayerSizes};
use super::weights::Weights;
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use candle_core::{IndexOp, Tensor};
use serde::Deserialize;
use std::path::Path;

/// Sizes from `vision_config`; the defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipImageConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: ClipActivation,
    pub layer_norm_eps: f64,
}

impl Default for ClipImageConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: ClipActivation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// A CLIP image model.
pub struct ClipImageModel {
    config: ClipImageConfig,
    /// From the values of a patch, `3·patch²`, to a token.
    patches: Tensor,
    /// `[1, 1, hidden]`.
    class: Tensor,
    /// `[1 + patches, hidden]`.
    positions: Tensor,
    first_norm: LayerNorm,
    layers: Vec<ClipLayer>,
    last_norm: LayerNorm,
    projection: Linear,
}

impl ClipImageModel {
    /// Takes an image model of these sizes, which come from the file `path`, with its projection to `projection`
    /// features, from `weights`.
    ///
    /// # Errors
    /// The sizes are not such as can be, or a tensor is missing or of another shape.
    pub fn from_weights(config: ClipImageConfig, projection: usize, path: &Path, weights: &Weights) -> Result<Self> {
        let ClipImageConfig { hidden_size: hidden, num_attention_heads: heads, patch_size: patch, .. } = config;
        let named = [
            ("vision_config: hidden_size", hidden),
            ("vision_config: intermediate_size", config.intermediate_size),
            ("vision_config: num_hidden_layers", config.num_hidden_layers),
            ("vision_config: image_size", config.image_size),
            ("projection_dim", projection),
        ];
        sizes::check(path, &named)?;
        sizes::check_eps(path, "vision_config: layer_norm_eps", config.layer_norm_eps)?;
        if !hidden.is_multiple_of(heads) {
            let problem = format!("vision_config: hidden_size {hidden} is no multiple of num_attention_heads {heads}");
            return Err(Error::file(path, problem));
        }
        if !config.image_size.is_multiple_of(patch) {
            let problem =
                format!("vision_config: image_size {} is no multiple of patch_size {patch}", config.image_size);
            return Err(Error::file(path, problem));
        }
        let eps = config.layer_norm_eps;
        let side = config.image_size / patch;
        let sizes =
            LayerSizes { hidden, intermediate: config.intermediate_size, heads, activation: config.hidden_act, eps };
        let name = |part: &str| format!("vision_model.{part}");
        weights.ignore("vision_model.embeddings.position_ids");
        let layer = |index: usize| ClipLayer::load(weights, &name(&format!("encoder.layers.{index}")), sizes);
        Ok(Self {
            patches: weights
                .get(&name("embeddings.patch_embedding.weight"), (hidden, 3, patch, patch))?
                .reshape((hidden, 3 * patch * patch))?,
            class: weights.get(&name("embeddings.class_embedding"), hidden)?.reshape((1, 1, hidden))?,
            positions: weights.get(&name("embeddings.position_embedding.weight"), (1 + side * side, hidden))?,
            // The released name.
            first_norm: LayerNorm::load(weights, &name("pre_layrnorm"), hidden, eps)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            last_norm: LayerNorm::load(weights, &name("post_layernorm"), hidden, eps)?,
            projection: Linear::load_no_bias(weights, "visual_projection", hidden, projection)?,
            config,
        })
    }

    /// Side in pixels of the square images that the model takes.
    pub fn image_size(&self) -> usize {
        self.config.image_size
    }

    /// Projected class tokens `[batch, projection]` of normalised images `[batch, 3, image_size, image_size]`.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = images.dims4()?;
        let patch = self.config.patch_size;
        let (rows, columns) = (height / patch, width / patch);
        // [batch, rows, columns, channels, patch, patch]: a patch's values in the order of the convolution's weights.
        let cut =
            images.reshape(&[batch, channels, rows, patch, columns, patch][..])?.permute(vec![0, 2, 4, 1, 3, 5])?;
        let cut = cut.contiguous()?.reshape((batch * rows * columns, channels * patch * patch))?;
        let hidden = self.config.hidden_size;
        let tokens = cut.matmul(&self.patches.t()?)?.reshape((batch, rows * columns, hidden))?;
        let class = self.class.expand((batch, 1, hidden))?;
        let mut x = Tensor::cat(&[&class.contiguous()?, &tokens], 1)?.broadcast_add(&self.positions)?;
        x = self.first_norm.forward(&x)?;
        for layer in &self.layers {
            x = layer.forward(&x, None)?;
        }
        self.projection.forward(&self.last_norm.forward(&x.i((.., 0))?)?)
    }
}
