//! FLUX.1 in one file: names and sizes (diffusers' `convert_flux_transformer_checkpoint_to_diffusers`).
use super::names::KOHYA;
use crate::model::families::flux::{self, NORMS_AND_AROUND};
use crate::model::families::original::Original;
use crate::model::weights::naming::{ModuleNames, Naming};
use crate::model::weights::shapes::Shapes;
use serde_json::{Value, json};

/// The family's files.
pub static ORIGINAL: Original = Original {
    naming: Naming { modules: &[KOHYA.blocks, &NORMS_AND_AROUND, &AROUND], swaps_halves: KOHYA.swaps_halves },
    // FLUX.2 has no pooled text.
    marks: [
        &["double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight"],
        &["single_transformer_blocks.0.proj_mlp.weight", "time_text_embed.text_embedder.linear_1.weight"],
    ],
    transformer: || json!({"axes_dims_rope": [16, 56, 56]}),
    transformer_sizes,
    vae: || json!({"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    scheduler,
    vae_file: "ae.safetensors",
    repository: "black-forest-labs/FLUX.1-dev",
};

/// Modules around the blocks that the other has not.
const AROUND: [ModuleNames; 1] = [ModuleNames::alone(&[
    ("time_in.in_layer", &[("time_text_embed.timestep_embedder.linear_1", 1)]),
    ("time_in.out_layer", &[("time_text_embed.timestep_embedder.linear_2", 1)]),
    ("vector_in.in_layer", &[("time_text_embed.text_embedder.linear_1", 1)]),
    ("vector_in.out_layer", &[("time_text_embed.text_embedder.linear_2", 1)]),
    ("guidance_in.in_layer", &[("time_text_embed.guidance_embedder.linear_1", 1)]),
    ("guidance_in.out_layer", &[("time_text_embed.guidance_embedder.linear_2", 1)]),
])];

fn has_guidance(shapes: &Shapes) -> bool {
    shapes.has("time_text_embed.guidance_embedder.linear_1.weight")
}

fn transformer_sizes(shapes: &Shapes, head_dim: Option<usize>) -> Value {
    let mut sizes = flux::sizes(shapes, head_dim);
    sizes["pooled_projection_dim"] = json!(shapes.size("time_text_embed.text_embedder.linear_1.weight", 1));
    sizes["guidance_embeds"] = json!(has_guidance(shapes));
    sizes
}

/// dev shifts by the number of image tokens, schnell not at all.
fn scheduler(shapes: &Shapes) -> Value {
    match has_guidance(shapes) {
        true => json!({
            "shift": 3.0,
            "use_dynamic_shifting": true,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        }),
        false => json!({"shift": 1.0}),
    }
}
