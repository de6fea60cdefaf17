//! FLUX.1's pipeline in the diffusers layout.
use super::names::KOHYA;
use super::original::ORIGINAL;
use crate::config::TextEncoderKind;
use crate::model::families::pipelines::{EncoderFolders, PipelineNames, SigmaSpacing, TextForm};

/// Side of the square of latents that is packed into a token (diffusers' `FluxPipeline._pack_latents`).
pub const PACKED_SIDE: usize = 2;

/// The pipeline in the diffusers layout.
pub static PIPELINE: PipelineNames = PipelineNames {
    name: "FLUX.1",
    class: "FluxPipeline",
    transformer_class: "FluxTransformer2DModel",
    encoders: &[
        EncoderFolders { kind: TextEncoderKind::ClipL, encoder: "text_encoder", tokenizer: "tokenizer" },
        EncoderFolders { kind: TextEncoderKind::T5, encoder: "text_encoder_2", tokenizer: "tokenizer_2" },
    ],
    usual_encoders: &[TextEncoderKind::ClipL, TextEncoderKind::T5],
    max_sequence_length: 512,
    steps: 28,
    text: TextForm::T5,
    // As many of T5's as the method's released code takes.
    words: 77,
    block_counts: &["num_layers", "num_single_layers"],
    packed_side: PACKED_SIDE,
    // diffusers' `FluxPipeline.__call__` gives its scheduler the levels.
    sigma_spacing: SigmaSpacing::Even,
    kohya: &KOHYA,
    original: Some(&ORIGINAL),
};
