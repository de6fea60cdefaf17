//! The section `[loss]`: what training minimises.
use serde::Serialize;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LossConfig {
    pub flow_weight: f64,
    pub alignment: Alignment,
    /// Weight of the softmax form.
    pub align_weight: f64,
    pub focal_weight: f64,
    pub dice_weight: f64,
    /// Images under more noise than this have no mask loss: in those little is to be seen.
    pub mask_max_sigma: f64,
    pub match_focal: f64,
    pub match_dice: f64,
    /// Matched pairs that cost more than this are left out; absent: none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_max_cost: Option<f64>,
    pub heads: HeadMaps,
    pub attention: AttentionForm,
    pub score_head: bool,
    /// Checkpoint whose score head training starts from; absent: a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_head_init: Option<PathBuf>,
    pub focal_probability: FocalProbability,
}

impl LossConfig {
    /// Whether any mask loss has a weight, in the alignment that is chosen.
    pub fn uses_masks(&self) -> bool {
        match self.alignment {
            Alignment::Sigmoid => self.focal_weight > 0.0 || self.dice_weight > 0.0,
            Alignment::Softmax => self.align_weight > 0.0,
        }
    }

    /// Whether a score head is trained: it serves the sigmoid form alone.
    pub fn uses_score_head(&self) -> bool {
        self.score_head && self.alignment == Alignment::Sigmoid && self.uses_masks()
    }

    /// What the softmax form takes the logarithm of: a probability in any case.
    pub fn aligned_form(&self) -> AttentionForm {
        match self.attention {
            AttentionForm::Logits => AttentionForm::Softmax,
            probability => probability,
        }
    }

    /// Whether the mask loss depends on keys of image tokens: on a softmax that they have part in.
    pub fn sees_image_keys(&self) -> bool {
        match self.alignment {
            Alignment::Sigmoid => self.attention == AttentionForm::Softmax,
            Alignment::Softmax => self.aligned_form() == AttentionForm::Softmax,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Alignment {
    Sigmoid,
    Softmax,
}

/// Which heads' maps there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadMaps {
    /// Every (head, token) pair is a map.
    Keep,
    /// Heads are averaged first.
    Mean,
    /// The strongest head at each position; of probabilities only (the released code's `MAX_HEAD`).
    Max,
    /// One head, counted from 0 (`HEAD`).
    #[serde(untagged)]
    One(usize),
}

/// What a map of attention is made of, for each image position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionForm {
    /// Scores before the softmax.
    Logits,
    /// Softmax over all keys of the joint sequence (the released code's `SOFTMAX`).
    Softmax,
    /// Softmax over CLIP's tokens alone (`SOFTMAX_I2T_ONLY`).
    SoftmaxText,
}

/// `Logit` is the released code's oddity: the raw logit where focal needs the probability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FocalProbability {
    Sigmoid,
    Logit,
}
