//! Stable Diffusion 3's pipeline in the diffusers layout.
use super::names::KOHYA;
use super::original::ORIGINAL;
use crate::config::TextEncoderKind;
use crate::model::families::pipelines::{EncoderFolders, PipelineNames, SigmaSpacing, TextForm};
use crate::model::text::tokenizer::CLIP_TOKENS;

/// The pipeline in the diffusers layout.
pub static PIPELINE: PipelineNames = PipelineNames {
    name: "SD3",
    class: "StableDiffusion3Pipeline",
    transformer_class: "SD3Transformer2DModel",
    encoders: &[
        EncoderFolders { kind: TextEncoderKind::ClipL, encoder: "text_encoder", tokenizer: "tokenizer" },
        EncoderFolders { kind: TextEncoderKind::ClipG, encoder: "text_encoder_2", tokenizer: "tokenizer_2" },
        EncoderFolders { kind: TextEncoderKind::T5, encoder: "text_encoder_3", tokenizer: "tokenizer_3" },
    ],
    // T5 is large, and used only when asked for.
    usual_encoders: &[TextEncoderKind::ClipL, TextEncoderKind::ClipG],
    max_sequence_length: 256,
    steps: 28,
    text: TextForm::ClipsThenT5,
    words: CLIP_TOKENS,
    block_counts: &["num_layers"],
    packed_side: 1,
    sigma_spacing: SigmaSpacing::Trained,
    kohya: &KOHYA,
    original: Some(&ORIGINAL),
};
