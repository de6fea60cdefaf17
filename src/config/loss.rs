//! The section `[loss]`: what training minimises.
use super::keys::{choices, keys};
use super::model::{LoraConfig, ModelConfig};
use super::model_choices::{LayerChoice, TextEncoderKind};
use super::reader::Reader;
use super::rule::{optional, usual};
use super::setting::{Choice, at_least, within};
use std::path::PathBuf;

keys! {
    /// What training minimises: the flow-matching loss, and the mask-alignment loss on the experts' attention.
    [loss] pub struct LossConfig(reader) {
        /// Weight of the flow-matching loss.
        flow_weight: f64 = usual(1.0), at_least(0.0);
        /// Form of the mask loss.
        alignment: Alignment = usual(Alignment::Sigmoid);
        /// Images under more noise than this sigma have no mask loss: little can be seen in them.
        mask_max_sigma: f64 = usual(1.0), within(0.0, 1.0);
        /// Weight of the softmax form; focal and dice have no part in that.
        align_weight: f64 = usual(0.2), at_least(0.0);
        /// Weight of the focal loss.
        focal_weight: f64 = usual(0.1), at_least(0.0);
        /// Weight of the dice loss.
        dice_weight: f64 = usual(0.2), at_least(0.0);
        /// Weight of the focal loss in the cost of matching attention maps to masks.
        match_focal: f64 = usual(0.02), at_least(0.0);
        /// Weight of the dice loss in that cost.
        match_dice: f64 = usual(1.0), at_least(0.0);
        /// Matched pairs that cost more than this are left out; without it none is.
        match_max_cost: Option<f64> = optional("1.0");
        /// Which heads' maps there are.
        heads: HeadMaps = usual(HeadMaps::Keep);
        /// What a map's values are.
        attention: AttentionForm = usual(AttentionForm::Logits);
        /// Whether a small convolutional head on each map is trained with the adapter, and left out of it.
        score_head: bool = usual(true);
        /// Checkpoint whose score head training starts from; without it training starts from a fresh one.
        score_head_init: Option<PathBuf> = optional("\"runs/first/checkpoints/step-001000\"");
        /// What the focal loss takes for the probability.
        focal_probability: FocalProbability = usual(FocalProbability::Sigmoid);
    }
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

    /// What no key can say alone.
    pub(super) fn check(&self, model: &ModelConfig, lora: &LoraConfig, reader: &mut Reader) {
        if self.flow_weight == 0.0 && !self.uses_masks() {
            let problem = "nothing would be trained";
            reader.problem(
                &["loss.flow_weight", "loss.focal_weight", "loss.dice_weight", "loss.align_weight", "loss.alignment"],
                format!("every loss has weight 0 with alignment = {:?}: {problem}", self.alignment.name()),
            );
        }
        if self.uses_masks() && model.text_encoders == [TextEncoderKind::T5] {
            let problem = "the mask loss reads the attention to CLIP's tokens; add \"clip_l\" or \"clip_g\"";
            reader.problem(&["model.text_encoders"], problem);
        }
        if self.score_head_init.is_some() && !self.uses_score_head() {
            reader.problem(
                &["loss.score_head_init", "loss.score_head", "loss.alignment"],
                "no score head is trained: that needs score_head = true, alignment = \"sigmoid\" and a mask loss",
            );
        }
        if self.heads == HeadMaps::Max && self.attention == AttentionForm::Logits {
            reader.problem(
                &["loss.heads", "loss.attention"],
                "the strongest head is that of a probability: set loss.attention to \"softmax\" or \"softmax_text\"",
            );
        }
        if self.flow_weight == 0.0 && self.mask_max_sigma == 0.0 {
            let problem = "is 0: no image is without noise, so that no mask would count, and loss.flow_weight is 0";
            reader.problem(&["loss.mask_max_sigma", "loss.flow_weight"], problem);
        }
        if let LayerChoice::List(layers) = &lora.layers
            && self.uses_masks()
            && layers.iter().all(|layer| *layer > model.last_expert())
        {
            reader.problem(
                &["lora.layers", "model.expert_layers"],
                format!(
                    "the mask loss reaches blocks 0 to {} (model.expert_layers) only, and none of these is listed; \
                     set its weights to 0 to train without it",
                    model.last_expert()
                ),
            );
        }
    }
}

choices! {
    /// Form of the mask loss.
    pub enum Alignment: Copy {
        /// Focal and dice loss of maps that are matched to masks, as published.
        Sigmoid = "sigmoid",
        /// Cross-entropy over tokens at each position.
        Softmax = "softmax",
    }
}

choices! {
    /// Which heads' maps there are.
    pub enum HeadMaps: Copy {
        /// Every (head, token) pair is a map.
        Keep = "keep",
        /// Heads are averaged first.
        Mean = "mean",
        /// The strongest head at each position; of a softmax only (`MAX_HEAD`).
        Max = "max",
    } or {
        /// This head alone (`HEAD`).
        One(usize): "a head's index (from 0)"
    }
}

choices! {
    /// What an attention map's values are, at each image position.
    pub enum AttentionForm: Copy {
        /// Scores before the softmax.
        Logits = "logits",
        /// Softmax over all keys of the joint sequence (`SOFTMAX`).
        Softmax = "softmax",
        /// Softmax over CLIP's tokens alone (`SOFTMAX_I2T_ONLY`).
        SoftmaxText = "softmax_text",
    }
}

choices! {
    /// What the focal loss takes for the probability.
    pub enum FocalProbability: Copy {
        /// The sigmoid of the logit.
        Sigmoid = "sigmoid",
        /// The raw logit: the released code's oddity, which the published adapters have.
        Logit = "logit",
    }
}
