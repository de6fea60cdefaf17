//! FLUX.2-klein's pipeline in the diffusers layout.
use super::names::KOHYA;
use super::original::ORIGINAL;
use crate::config::TextEncoderKind;
use crate::model::families::pipelines::{EncoderFolders, PipelineNames, SigmaSpacing, TextForm};

/// The pipeline in the diffusers layout.
pub static PIPELINE: PipelineNames = PipelineNames {
    name: "FLUX.2-klein",
    class: "Flux2KleinPipeline",
    transformer_class: "Flux2Transformer2DModel",
    encoders: &[EncoderFolders { kind: TextEncoderKind::Qwen3, encoder: "text_encoder", tokenizer: "tokenizer" }],
    usual_encoders: &[TextEncoderKind::Qwen3],
    max_sequence_length: 512,
    steps: 50,
    text: TextForm::Qwen3 { layers: &[9, 18, 27] },
    // Enough for captions of a few sentences behind the template's beginning.
    words: 128,
    block_counts: &["num_layers", "num_single_layers"],
    // The autoencoder's latents are packed by itself.
    packed_side: 2,
    // diffusers' `Flux2KleinPipeline.__call__` gives its scheduler the levels, and `compute_empirical_mu`'s shift.
    sigma_spacing: SigmaSpacing::EvenEmpirical,
    kohya: &KOHYA,
    original: Some(&ORIGINAL),
};
