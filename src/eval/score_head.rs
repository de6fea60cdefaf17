//! A trained score head, applied to the maps at evaluation.
use crate::autograd::Variable;
use crate::model::adapters::formats::{CHECKPOINT_FILE, no_pickle};
use crate::model::weights::Weights;
use crate::ops::{self, conv2d};
use crate::system::error::{Error, Result};
use crate::system::paths::is_folder;
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use std::path::Path;

/// Prefixes of [`ops::PARAMETERS`]: in checkpoints, and in the released code's files.
const PREFIXES: [&str; 2] = ["score_head.", "attn_mlp.attn_score_layer."];

/// How the head is put on maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ScoreHeadForm {
    /// As in training: convolutions over each map, added to it
    Residual,
    /// As the released code does at evaluation: convolutions over the table of positions and tokens, in the maps' place
    Released,
}

/// A score head with trained weights.
#[derive(Clone, Debug)]
pub struct TrainedScoreHead {
    /// In the order of [`ops::PARAMETERS`], f32.
    parameters: Vec<Tensor>,
    form: ScoreHeadForm,
}

impl TrainedScoreHead {
    /// Reads the score head of a checkpoint (the folder, or its `adapter.safetensors`) or of the released code's file,
    /// converted to safetensors.
    ///
    /// # Errors
    /// The file cannot be read, or has no score head, or one of other shapes.
    pub fn read(path: &Path, form: ScoreHeadForm, device: &Device) -> Result<Self> {
        let file = if is_folder(path)? { path.join(CHECKPOINT_FILE) } else { path.to_owned() };
        let weights = Weights::open(&file, std::slice::from_ref(&file), DType::F32, device);
        let weights = weights.map_err(|problem| no_pickle(&file, problem))?;
        let has = |prefix: &&str| weights.names().iter().any(|name| name.starts_with(prefix));
        let Some(prefix) = PREFIXES.into_iter().find(has) else {
            let names = PREFIXES.map(|prefix| format!("{prefix}{}", ops::PARAMETERS[0].0)).join(" or ");
            return Err(Error::file(&file, format!("has no score head: expected tensors such as {names}")));
        };
        let parameters = ops::PARAMETERS.iter().map(|(name, shape)| weights.get(&format!("{prefix}{name}"), *shape));
        Ok(Self { parameters: parameters.collect::<Result<_>>()?, form })
    }

    /// Applies the head to maps `[batch, image tokens, words]`; `grid` is the number of rows and columns of image tokens.
    pub fn apply(&self, maps: &Tensor, grid: (usize, usize)) -> TensorResult<Tensor> {
        let (batch, positions, tokens) = maps.dims3()?;
        match self.form {
            ScoreHeadForm::Residual => {
                let pictures = maps.transpose(1, 2)?.contiguous()?.reshape((batch * tokens, grid.0, grid.1))?;
                let parameters: Vec<_> = self.parameters.iter().cloned().map(Variable::from).collect();
                let scored = ops::score_head(&pictures.into(), &parameters, ops::Precision::F32)?.into_tensor();
                scored.reshape((batch, tokens, positions))?.transpose(1, 2)?.contiguous()
            }
            ScoreHeadForm::Released => {
                let mut table = maps.reshape((batch, 1, positions, tokens))?;
                for (layer, parameters) in self.parameters.chunks_exact(2).enumerate() {
                    let (weight, bias) = (parameters[0].clone(), parameters[1].clone());
                    let convolution = conv2d::Conv2d::new(weight, bias, conv2d::Stride::One)?;
                    let is_last = 2 * (layer + 1) == self.parameters.len();
                    let convolution = if is_last { convolution } else { convolution.with_relu() };
                    table = convolution.forward(&table)?;
                }
                table.reshape((batch, positions, tokens))
            }
        }
    }
}
