//! Map settings as arguments, shared by all commands that evaluate attention.
use super::ModelArgs;
use crate::config::{AttentionForm, Choice, MapHeads, MapNormalize};
use crate::eval::maps::{MapSettings, check_heads};
use crate::eval::score_head::{ScoreHeadForm, TrainedScoreHead};
use crate::model::families;
use crate::system::error::Result;
use candle_core::Device;
use clap::Args;
use std::path::PathBuf;
use std::str::FromStr;

/// Blocks of a model, counted from 0, ascending, each once: `9`, or `7,8,9`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerList(pub Vec<usize>);

impl LayerList {
    /// How many of a model's blocks their attention needs.
    pub fn depth(&self) -> Option<usize> {
        self.0.last().map(|last| last + 1)
    }
}

impl FromStr for LayerList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<usize>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        let mut numbers = numbers.map_err(|_| "expected the number of a block, or several separated by commas")?;
        numbers.sort_unstable();
        match numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("block {} is named twice", pair[0])),
            None => Ok(Self(numbers)),
        }
    }
}

/// What the maps are of that a command looks at.
#[derive(Args, Clone, Debug)]
pub struct MapArgs {
    /// Heads of the attention: mean, max (at each position the strongest), or the number of one, from 0
    #[arg(long, value_name = "HEADS", default_value = "mean")]
    pub heads: MapHeads,
    /// What a map's values are: softmax (shares of all of a position's attention), softmax_text (of its attention to
    /// the CLIP tokens) or logits (scores before the softmax)
    #[arg(long, value_name = "KIND", default_value = "softmax", value_parser = AttentionForm::from_name)]
    pub attention: AttentionForm,
    /// Score head to put on the maps: that of a checkpoint (its folder), or of the released code's lora_weights
    /// (converted to safetensors)
    #[arg(long, value_name = "PATH")]
    pub score_head: Option<PathBuf>,
    /// How it is put on them
    #[arg(long, value_name = "FORM", default_value = "residual", requires = "score_head")]
    pub score_head_form: ScoreHeadForm,
}

/// Which maps are scaled.
#[derive(Args, Clone, Debug)]
pub struct NormalizeArgs {
    /// Scale maps to [0, 1] over the image: before (each token's, before those of a name are averaged), after (each
    /// name's), both or none
    #[arg(long, value_name = "WHEN", default_value = "none", value_parser = MapNormalize::from_name)]
    pub normalize: MapNormalize,
}

impl MapArgs {
    /// Checks, before gigabytes of weights are read, that the model has these blocks and heads, and that the score head
    /// can be read.
    pub fn check(&self, model: &ModelArgs, layers: &[usize]) -> Result<()> {
        let files = model.files()?;
        let config = families::of(&files)?.config(&files)?;
        layers.iter().try_for_each(|layer| config.check_block("--layer", *layer))?;
        check_heads(self.heads, config.num_attention_heads)?;
        self.score_head(&Device::Cpu).map(|_| ())
    }

    /// The settings for the attention of `layers`.
    ///
    /// # Errors
    /// The score head cannot be read.
    pub fn settings(&self, layers: &[usize], normalize: MapNormalize, device: &Device) -> Result<MapSettings> {
        Ok(MapSettings {
            heads: self.heads,
            attention: self.attention,
            normalize,
            score_head: self.score_head(device)?,
            ..MapSettings::of_layers(layers)
        })
    }

    fn score_head(&self, device: &Device) -> Result<Option<TrainedScoreHead>> {
        self.score_head.as_deref().map(|path| TrainedScoreHead::read(path, self.score_head_form, device)).transpose()
    }
}
