//! FLUX.1 in one file: names and sizes (diffusers' `convert_flux_transformer_checkpoint_to_diffusers`).
use super::names::{DOUBLE_BLOCKS, KOHYA, OUTPUT_NORM, SINGLE_BLOCKS};
use crate::model::families::original::Original;
use crate::model::weights::naming::{ModuleNames, Naming};
use crate::model::weights::shapes::Shapes;
use serde_json::{Value, json};

/// The family's files.
pub static ORIGINAL: Original = Original {
    naming: Naming { modules: &[KOHYA.blocks, &NORMS, &AROUND], swaps_halves: KOHYA.swaps_halves },
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

/// Norms of the heads, which no adapter sits on.
const NORMS: [ModuleNames; 2] = [
    ModuleNames {
        original: "double_blocks.*",
        diffusers: "transformer_blocks.*",
        layers: &[
            ("img_attn.norm.query_norm", &[("attn.norm_q", 1)]),
            ("img_attn.norm.key_norm", &[("attn.norm_k", 1)]),
            ("txt_attn.norm.query_norm", &[("attn.norm_added_q", 1)]),
            ("txt_attn.norm.key_norm", &[("attn.norm_added_k", 1)]),
        ],
    },
    ModuleNames {
        original: "single_blocks.*",
        diffusers: "single_transformer_blocks.*",
        layers: &[("norm.query_norm", &[("attn.norm_q", 1)]), ("norm.key_norm", &[("attn.norm_k", 1)])],
    },
];

/// Modules around the blocks.
const AROUND: [ModuleNames; 1] = [ModuleNames {
    original: "",
    diffusers: "",
    layers: &[
        ("img_in", &[("x_embedder", 1)]),
        ("txt_in", &[("context_embedder", 1)]),
        ("time_in.in_layer", &[("time_text_embed.timestep_embedder.linear_1", 1)]),
        ("time_in.out_layer", &[("time_text_embed.timestep_embedder.linear_2", 1)]),
        ("vector_in.in_layer", &[("time_text_embed.text_embedder.linear_1", 1)]),
        ("vector_in.out_layer", &[("time_text_embed.text_embedder.linear_2", 1)]),
        ("guidance_in.in_layer", &[("time_text_embed.guidance_embedder.linear_1", 1)]),
        ("guidance_in.out_layer", &[("time_text_embed.guidance_embedder.linear_2", 1)]),
        ("final_layer.linear", &[("proj_out", 1)]),
        ("final_layer.adaLN_modulation.1", &[(OUTPUT_NORM, 1)]),
    ],
}];

fn has_guidance(shapes: &Shapes) -> bool {
    shapes.has("time_text_embed.guidance_embedder.linear_1.weight")
}

fn transformer_sizes(shapes: &Shapes, head_dim: Option<usize>) -> Value {
    let size = |name: &str, dimension| shapes.size(name, dimension);
    let head_dim = size(&format!("{DOUBLE_BLOCKS}.0.attn.norm_q.weight"), 0).or(head_dim).filter(|size| *size > 0);
    json!({
        "in_channels": size("x_embedder.weight", 1),
        "out_channels": size("proj_out.weight", 0),
        "num_layers": shapes.count(&format!("{DOUBLE_BLOCKS}.")),
        "num_single_layers": shapes.count(&format!("{SINGLE_BLOCKS}.")),
        "attention_head_dim": head_dim,
        "num_attention_heads": size("x_embedder.weight", 0).zip(head_dim).map(|(width, head_dim)| width / head_dim),
        "joint_attention_dim": size("context_embedder.weight", 1),
        "pooled_projection_dim": size("time_text_embed.text_embedder.linear_1.weight", 1),
        "guidance_embeds": has_guidance(shapes),
    })
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
